//! The only SQL that moves money. Every function runs inside the caller's transaction and handles
//! all tasks in it. Accounts are locked in id order to avoid deadlocks.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::payer::{Payer, Payers};
use crate::{
    ids::{AccountId, KeyId, TaskId},
    money::Cny,
};

/// How the hold of a task that has ended is settled: `captured` is spent, the rest is released.
#[derive(Clone, Copy, Debug)]
pub struct Settlement {
    /// The task that has ended.
    pub task_id: TaskId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// The full amount of the hold.
    pub held: Cny,
    /// Zero releases the whole hold.
    pub captured: Cny,
    /// When the task ended.
    pub at: DateTime<Utc>,
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

/// Writes the holds that [`Payers::hold`] granted.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn hold(conn: &mut PgConnection, payers: Payers) -> sqlx::Result<()> {
    let mut sums = BTreeMap::<AccountId, Cny>::new();
    let (mut tasks, mut accounts, mut amounts) = (Vec::new(), Vec::new(), Vec::new());
    for hold in &payers.holds {
        let sum = sums.entry(hold.account_id).or_default();
        *sum = *sum + hold.amount;
        tasks.push(hold.task_id);
        accounts.push(hold.account_id);
        amounts.push(hold.amount.micros());
    }
    if tasks.is_empty() {
        return Ok(());
    }
    let (payer_ids, payer_sums): (Vec<_>, Vec<_>) =
        sums.iter().map(|(id, sum)| (*id, sum.micros())).unzip();
    let touched = query_scalar!(
        r#"WITH entered AS (
               INSERT INTO entries (account_id, task_id, kind, balance_change, held_change)
               SELECT h.account_id, h.task_id, 'hold', 0, h.amount
               FROM UNNEST($3::uuid[], $4::uuid[], $5::bigint[]) AS h (account_id, task_id, amount)
           ), updated AS (
               UPDATE accounts SET held = held + s.amount
               FROM UNNEST($1::uuid[], $2::bigint[]) AS s (id, amount)
               WHERE accounts.id = s.id
               RETURNING 1
           )
           SELECT count(*) AS "count!" FROM updated"#,
        &payer_ids as _,
        &payer_sums,
        &accounts as _,
        &tasks as _,
        &amounts,
    )
    .fetch_one(conn)
    .await?;
    expect_rows(touched, payer_ids.len())
}

/// Settles holds. The caller must have ended each task in the same transaction; a second settlement
/// of a task violates `entries_settlement_key`.
///
/// An account's month never goes back: a transaction that began before midnight may have waited for
/// one that began after it, and must not overwrite what that one spent.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn settle(
    conn: &mut PgConnection,
    settlements: &[Settlement],
    time_zone: &str,
) -> sqlx::Result<()> {
    if settlements.is_empty() {
        return Ok(());
    }
    let mut sums = BTreeMap::<AccountId, (Cny, Cny)>::new();
    let (mut tasks, mut accounts) = (Vec::new(), Vec::new());
    let (mut held, mut captured) = (Vec::new(), Vec::new());
    for settlement in settlements {
        let sum = sums.entry(settlement.account_id).or_default();
        *sum = (sum.0 + settlement.held, sum.1 + settlement.captured);
        tasks.push(settlement.task_id);
        accounts.push(settlement.account_id);
        held.push(settlement.held.micros());
        captured.push(settlement.captured.micros());
    }
    lock_accounts(conn, &sums).await?;
    let ids: Vec<_> = sums.keys().copied().collect();
    let held_sums: Vec<_> = sums.values().map(|sum| sum.0.micros()).collect();
    let captured_sums: Vec<_> = sums.values().map(|sum| sum.1.micros()).collect();
    let touched = query_scalar!(
        r#"WITH entered AS (
               INSERT INTO entries (account_id, task_id, kind, balance_change, held_change)
               SELECT s.account_id, s.task_id,
                   CASE WHEN s.captured > 0 THEN 'capture' ELSE 'release' END, -s.captured, -s.held
               FROM UNNEST($4::uuid[], $5::uuid[], $6::bigint[], $7::bigint[])
                   AS s (account_id, task_id, held, captured)
           ), updated AS (
               UPDATE accounts
               SET balance = balance - s.captured, held = accounts.held - s.held,
                   spent = spent + s.captured,
                   month = GREATEST(month, date_trunc('month', now() AT TIME ZONE $8)::date),
                   month_spend = s.captured
                       + CASE WHEN month >= date_trunc('month', now() AT TIME ZONE $8)::date
                             THEN month_spend ELSE 0 END
               FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[]) AS s (id, held, captured)
               WHERE accounts.id = s.id
               RETURNING 1
           )
           SELECT count(*) AS "count!" FROM updated"#,
        &ids as _,
        &held_sums,
        &captured_sums,
        &accounts as _,
        &tasks as _,
        &held,
        &captured,
        time_zone,
    )
    .fetch_one(conn)
    .await?;
    expect_rows(touched, ids.len())
}

/// Locks accounts in id order. An UPDATE of several rows would lock them in any order.
async fn lock_accounts<T>(
    conn: &mut PgConnection,
    sums: &BTreeMap<AccountId, T>,
) -> sqlx::Result<()> {
    if sums.len() < 2 {
        return Ok(());
    }
    let ids: Vec<_> = sums.keys().copied().collect();
    query!(
        "SELECT id FROM accounts WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
        &ids as _
    )
    .fetch_all(conn)
    .await
    .map(drop)
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
               INSERT INTO entries (account_id, kind, balance_change, held_change)
               SELECT id, 'top_up', $2, 0 FROM updated
           )
           SELECT balance AS "balance: Cny" FROM updated"#,
        account_id as _,
        amount.micros(),
    )
    .fetch_optional(conn)
    .await
}

/// Checks the ledger's invariants. Returns each invariant with its number of violations, which must
/// be zero at any time, also while tasks run.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn faults(conn: &mut PgConnection) -> sqlx::Result<Vec<(&'static str, i64)>> {
    let mut faults = account_faults(conn).await?.to_vec();
    faults.extend(task_faults(conn).await?);
    Ok(faults)
}

async fn account_faults(conn: &mut PgConnection) -> sqlx::Result<[(&'static str, i64); 2]> {
    let row = query!(
        r#"SELECT
               count(*) FILTER (WHERE a.balance <> COALESCE(e.balance, 0) OR a.held <> COALESCE(e.held, 0)
                   OR a.spent <> COALESCE(e.spent, 0)) AS "sums!",
               count(*) FILTER (WHERE a.held < 0 OR a.held > a.balance) AS "bounds!"
           FROM accounts a
           LEFT JOIN (SELECT account_id, sum(balance_change) AS balance, sum(held_change) AS held,
                          -sum(balance_change) FILTER (WHERE kind = 'capture') AS spent
                      FROM entries GROUP BY account_id) e ON e.account_id = a.id"#
    )
    .fetch_one(conn)
    .await?;
    Ok([
        (
            "the entries of an account add up to its balance, holds and spending",
            row.sums,
        ),
        (
            "what is held is neither negative nor more than the balance",
            row.bounds,
        ),
    ])
}

async fn task_faults(conn: &mut PgConnection) -> sqlx::Result<[(&'static str, i64); 3]> {
    let row = query!(
        r#"SELECT
               count(*) FILTER (WHERE e.holds IS DISTINCT FROM 1
                   OR e.held IS DISTINCT FROM t.unit_price::numeric * t.n) AS "holds!",
               count(*) FILTER (WHERE e.settlements IS DISTINCT FROM (t.ended_at IS NOT NULL)::int
                   OR (t.ended_at IS NOT NULL AND e.still_held <> 0)) AS "settlements!",
               count(*) FILTER (WHERE COALESCE(t.cost, 0) <> COALESCE(e.captured, 0)
                   OR (t.ended_at IS NOT NULL AND t.cost IS DISTINCT FROM
                       t.unit_price::numeric * COALESCE(jsonb_array_length(t.images), 0))) AS "captures!"
           FROM tasks t
           FULL JOIN (SELECT task_id, account_id, count(*) FILTER (WHERE kind = 'hold') AS holds,
                          sum(held_change) FILTER (WHERE kind = 'hold') AS held,
                          count(*) FILTER (WHERE kind <> 'hold') AS settlements,
                          sum(held_change) AS still_held, -sum(balance_change) AS captured
                      FROM entries WHERE task_id IS NOT NULL GROUP BY task_id, account_id) e
               ON e.task_id = t.id AND e.account_id = t.account_id"#
    )
    .fetch_one(conn)
    .await?;
    Ok([
        ("a task has one hold, of its whole price", row.holds),
        (
            "an open task keeps its hold, and one settlement ends it with the task",
            row.settlements,
        ),
        (
            "what is captured is the price of the images delivered, nothing for a failed task",
            row.captures,
        ),
    ])
}

fn expect_rows(touched: i64, expected: usize) -> sqlx::Result<()> {
    if usize::try_from(touched) == Ok(expected) {
        Ok(())
    } else {
        Err(sqlx::Error::RowNotFound)
    }
}
