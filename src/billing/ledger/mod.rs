//! The only SQL that moves money. An open task is a hold: its row and its account's `held` change in one statement.
//! Accounts are locked in id order to avoid deadlocks.

mod accept;
mod audit;
pub mod closing;
mod settle;

pub use accept::{Acceptance, Accepted, NewTask, Start, accept, present};
pub use audit::{Scope, faults};
pub use settle::{Settlement, Settling, settle};

use std::time::Duration;

use sqlx::{PgConnection, query, query_scalar};

use super::payer::{Payer, Payers};
use crate::{
    ids::{AccountId, KeyId},
    money::Cny,
};

/// What a statement that moves money needs to know besides the tasks.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long a claim lasts without a renewal.
    pub lease: Duration,
    /// How long a task may take, from its creation.
    pub deadline: Duration,
    /// Determines when a month begins, for quotas.
    pub time_zone: String,
}

/// Locks the accounts of some keys until the transaction ends, and reads what they can pay. Omits
/// keys that are revoked or expired or whose account is disabled; this takes effect from the commit
/// that revoked or disabled them.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn lock(
    conn: &mut PgConnection,
    keys: &[KeyId],
    time_zone: &str,
) -> sqlx::Result<Payers> {
    let rows = query!(
        r#"SELECT k.id AS "key_id: KeyId", a.id AS "account_id: AccountId", a.balance AS "balance: Cny",
               a.held AS "held: Cny", a.monthly_quota AS "monthly_quota: Cny",
               CASE WHEN a.month >= date_trunc('month', now() AT TIME ZONE $2)::date
                   THEN a.month_spend ELSE 0 END AS "month_spend!: Cny"
           FROM accounts a JOIN api_keys k ON k.account_id = a.id
           WHERE k.id = ANY($1) AND k.revoked_at IS NULL AND a.disabled_at IS NULL
               AND (k.expires_at IS NULL OR k.expires_at > now())
           ORDER BY a.id, k.id
           FOR NO KEY UPDATE OF a FOR SHARE OF k"#,
        keys as _,
        time_zone,
    )
    .fetch_all(conn)
    .await?;
    let mut payers = Payers::default();
    for row in rows {
        payers.keys.insert(row.key_id, row.account_id);
        payers
            .accounts
            .entry(row.account_id)
            .or_insert_with(|| Payer {
                balance: row.balance,
                held: row.held,
                quota_left: row
                    .monthly_quota
                    .map(|quota| quota - row.month_spend - row.held),
                monthly_quota: row.monthly_quota,
            });
    }
    Ok(payers)
}

/// Locks, without waiting, those accounts that no other transaction has locked, and returns them.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn lock_free(
    conn: &mut PgConnection,
    accounts: &[AccountId],
) -> sqlx::Result<Vec<AccountId>> {
    query_scalar!(
        r#"SELECT id AS "id: AccountId" FROM accounts WHERE id = ANY($1)
           ORDER BY id FOR NO KEY UPDATE SKIP LOCKED"#,
        accounts as _,
    )
    .fetch_all(conn)
    .await
}

/// Adds to a balance. A negative amount withdraws, but never held money: that violates
/// `accounts_held_check`. Returns the new balance, or `None` if the account does not exist.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn top_up(
    conn: &mut PgConnection,
    account_id: AccountId,
    amount: Cny,
) -> sqlx::Result<Option<Cny>> {
    query_scalar!(
        r#"WITH updated AS (
               UPDATE accounts SET balance = balance + $2 WHERE id = $1 RETURNING id, balance
           ), entered AS (
               INSERT INTO entries (account_id, kind, balance_change)
               SELECT id, 'top_up', $2 FROM updated
           )
           SELECT balance AS "balance: Cny" FROM updated"#,
        account_id as _,
        amount.micros(),
    )
    .fetch_optional(conn)
    .await
}
