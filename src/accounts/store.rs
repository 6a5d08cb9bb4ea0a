//! Accounts and API keys in the database. Only `billing` moves balances.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar};

use super::{
    Caller,
    keys::{KeyHash, NewKey},
};
use crate::{
    config::InlineImages,
    ids::{self, AccountId, KeyId},
    money::Cny,
};

/// An account as `easel accounts list` shows it.
#[derive(Debug)]
pub struct Account {
    /// Identifies it in the database and in the logs.
    pub id: AccountId,
    /// Chosen by the operator; unique.
    pub name: String,
    /// Everything paid in minus everything captured.
    pub balance: Cny,
    /// The part of the balance that open tasks hold.
    pub held: Cny,
    /// Everything captured so far.
    pub spent: Cny,
    /// Captured in the current month.
    pub month_spend: Cny,
    /// `None`: no quota.
    pub monthly_quota: Option<Cny>,
    /// When it was created, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// `None` while the account is enabled.
    pub disabled_at: Option<DateTime<Utc>>,
}

/// The limits of a new key; `None` means no limit.
#[derive(Debug, Default)]
pub struct KeyLimits {
    /// Requests in any minute.
    pub requests_per_minute: Option<u32>,
    /// Tasks open at the same time.
    pub concurrent_requests: Option<u32>,
    /// The key is refused from then on.
    pub expires_at: Option<DateTime<Utc>>,
    /// `None`: use the configured default.
    pub inline_images: Option<InlineImages>,
}

/// An API key as `easel keys list` shows it.
#[derive(Debug)]
pub struct ApiKey {
    /// Identifies it to `easel keys revoke`.
    pub id: KeyId,
    /// The name of its account.
    pub account: String,
    /// Chosen by the operator; usage records show it.
    pub name: String,
    /// The key's first and last characters.
    pub hint: String,
    /// Its rate; `None`: no limit.
    pub requests_per_minute: Option<i32>,
    /// Its limit of open tasks; `None`: no limit.
    pub concurrent_requests: Option<i32>,
    /// The mode of inline images, as stored; `None`: the configured default.
    pub inline_images: Option<String>,
    /// When it was created, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// When it stops being accepted; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// `None`: it was not revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Inserts an account. `None` if the name is taken.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn insert(
    conn: &mut PgConnection,
    name: &str,
    monthly_quota: Option<Cny>,
) -> sqlx::Result<Option<AccountId>> {
    query_scalar!(
        r#"INSERT INTO accounts (id, name, monthly_quota) VALUES ($1, $2, $3)
           ON CONFLICT ON CONSTRAINT accounts_name_key DO NOTHING RETURNING id AS "id: AccountId""#,
        ids::row_id() as AccountId,
        name,
        monthly_quota.map(Cny::micros),
    )
    .fetch_optional(conn)
    .await
}

/// Whether any account exists.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn any(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(r#"SELECT EXISTS (SELECT FROM accounts) AS "any!""#)
        .fetch_one(conn)
        .await
}

/// Returns the id of the account with this name.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn id_of(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<AccountId>> {
    query_scalar!(
        r#"SELECT id AS "id: AccountId" FROM accounts WHERE name = $1"#,
        name
    )
    .fetch_optional(conn)
    .await
}

/// Lists all accounts by name. `time_zone` determines when the current month began.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn list(conn: &mut PgConnection, time_zone: &str) -> sqlx::Result<Vec<Account>> {
    query_as!(
        Account,
        r#"SELECT id, name, balance AS "balance: Cny", held AS "held: Cny", spent AS "spent: Cny",
               CASE WHEN month = date_trunc('month', now() AT TIME ZONE $1)::date
                   THEN month_spend ELSE 0 END AS "month_spend!: Cny",
               monthly_quota AS "monthly_quota: Cny", created_at, disabled_at
           FROM accounts ORDER BY name"#,
        time_zone,
    )
    .fetch_all(conn)
    .await
}

/// Returns one account. `time_zone` determines when the current month began.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn get(
    conn: &mut PgConnection,
    id: AccountId,
    time_zone: &str,
) -> sqlx::Result<Option<Account>> {
    query_as!(
        Account,
        r#"SELECT id, name, balance AS "balance: Cny", held AS "held: Cny", spent AS "spent: Cny",
               CASE WHEN month = date_trunc('month', now() AT TIME ZONE $2)::date
                   THEN month_spend ELSE 0 END AS "month_spend!: Cny",
               monthly_quota AS "monthly_quota: Cny", created_at, disabled_at
           FROM accounts WHERE id = $1"#,
        id as _,
        time_zone,
    )
    .fetch_optional(conn)
    .await
}

/// The amount that a new hold could take, read without a lock: a later hold may find less.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn available(conn: &mut PgConnection, id: AccountId) -> sqlx::Result<Option<Cny>> {
    query_scalar!(
        r#"SELECT balance - held AS "available!: Cny" FROM accounts WHERE id = $1"#,
        id as _
    )
    .fetch_optional(conn)
    .await
}

/// Whether an account may be used.
#[derive(Clone, Copy, Debug)]
pub enum AccountStatus {
    /// Its keys are accepted.
    Enabled,
    /// Its keys are refused, and it spends nothing more.
    Disabled,
}

/// Enables or disables an account. `None` if it does not exist.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn set_status(
    conn: &mut PgConnection,
    name: &str,
    status: AccountStatus,
) -> sqlx::Result<Option<()>> {
    let disabled = matches!(status, AccountStatus::Disabled);
    let touched = query!(
        "UPDATE accounts SET disabled_at = CASE WHEN $2 THEN COALESCE(disabled_at, now()) END
         WHERE name = $1",
        name,
        disabled,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok((touched == 1).then_some(()))
}

/// Inserts a key for an account.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn insert_key(
    conn: &mut PgConnection,
    account_id: AccountId,
    name: &str,
    key: &NewKey,
    limits: &KeyLimits,
) -> sqlx::Result<KeyId> {
    query_scalar!(
        r#"INSERT INTO api_keys (id, account_id, name, hash, hint, requests_per_minute,
               concurrent_requests, expires_at, inline_images)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id AS "id: KeyId""#,
        ids::row_id() as KeyId,
        account_id as _,
        name,
        &key.hash[..],
        key.hint,
        limits.requests_per_minute.map(u32::cast_signed),
        limits.concurrent_requests.map(u32::cast_signed),
        limits.expires_at,
        limits.inline_images as Option<InlineImages>,
    )
    .fetch_one(conn)
    .await
}

/// Lists keys by account and age, optionally of one account only.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn list_keys(
    conn: &mut PgConnection,
    account: Option<&str>,
) -> sqlx::Result<Vec<ApiKey>> {
    query_as!(
        ApiKey,
        "SELECT k.id, a.name AS account, k.name, k.hint, k.requests_per_minute,
             k.concurrent_requests, k.inline_images, k.created_at, k.expires_at, k.revoked_at
         FROM api_keys k JOIN accounts a ON a.id = k.account_id
         WHERE $1::text IS NULL OR a.name = $1
         ORDER BY a.name, k.id",
        account,
    )
    .fetch_all(conn)
    .await
}

/// Revokes a key. `None` if it does not exist. Revoking twice is no error and keeps the first time.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn revoke_key(conn: &mut PgConnection, id: KeyId) -> sqlx::Result<Option<()>> {
    let touched = query!(
        "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1",
        id as _
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok((touched == 1).then_some(()))
}

/// Returns the key with this hash, revoked or not.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn key_id_of(conn: &mut PgConnection, hash: &KeyHash) -> sqlx::Result<Option<KeyId>> {
    query_scalar!(
        r#"SELECT id AS "id: KeyId" FROM api_keys WHERE hash = $1"#,
        &hash[..]
    )
    .fetch_optional(conn)
    .await
}

/// Returns the caller of a key, if the key and its account may be used.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn caller(conn: &mut PgConnection, hash: &KeyHash) -> sqlx::Result<Option<Caller>> {
    let row = query!(
        r#"SELECT k.id, k.account_id, k.requests_per_minute, k.concurrent_requests,
             k.inline_images AS "inline_images: InlineImages"
         FROM api_keys k JOIN accounts a ON a.id = k.account_id
         WHERE k.hash = $1 AND k.revoked_at IS NULL AND a.disabled_at IS NULL
             AND (k.expires_at IS NULL OR k.expires_at > now())"#,
        &hash[..],
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Caller {
        account_id: row.account_id.into(),
        key_id: row.id.into(),
        requests_per_minute: row.requests_per_minute.map(i32::cast_unsigned),
        concurrent_requests: row.concurrent_requests.map(i32::cast_unsigned),
        inline_images: row.inline_images,
    }))
}

/// Counts a request against its key's rate limit, across all replicas (GCRA): a key may spend a minute's
/// worth at once, then regains one request per 1/limit minute. Returns the seconds to wait if exceeded.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn count_request(conn: &mut PgConnection, key_id: KeyId) -> sqlx::Result<Option<u32>> {
    let counted = query!(
        "UPDATE api_keys
         SET next_request_at = GREATEST(next_request_at, now()) + interval '1 minute' / requests_per_minute
         WHERE id = $1 AND (requests_per_minute IS NULL
             OR next_request_at <= now() + interval '1 minute' - interval '1 minute' / requests_per_minute)",
        key_id as _,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if counted == 1 {
        return Ok(None);
    }
    let wait = query_scalar!(
        r#"SELECT ceil(extract(epoch FROM next_request_at - now() - interval '1 minute'
               + interval '1 minute' / requests_per_minute))::int AS "wait!"
           FROM api_keys WHERE id = $1"#,
        key_id as _,
    )
    .fetch_one(conn)
    .await?;
    Ok(Some(wait.max(1).cast_unsigned()))
}
