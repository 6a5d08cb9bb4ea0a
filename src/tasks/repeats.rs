//! Which requests repeat an earlier one. Asked while the account is locked, so that two repeats at
//! the same time cannot both be the first.

use sha2::{Digest, Sha256};
use sqlx::{PgConnection, query_as, query_scalar};

use super::{Reference, Request};
use crate::ids::{KeyId, TaskId};

/// Tells requests apart by all that they ask for: 16 bytes of SHA-256. References that came inside the
/// request count by their bytes, not by where those were stored.
pub fn fingerprint(request: &Request) -> Vec<u8> {
    let mut request = request.clone();
    for reference in request.references.iter_mut().chain(&mut request.mask) {
        if let Reference::Stored(stored) = reference
            && !stored.digest.is_empty()
        {
            stored.object.clear();
        }
    }
    let text = serde_json::to_vec(&request).unwrap_or_default();
    Sha256::digest(text)[..16].to_vec()
}

/// The task that an idempotency key of the last 24 hours belongs to.
#[derive(Clone, Debug)]
pub struct Named {
    pub api_key_id: KeyId,
    pub idempotency_key: String,
    pub task_id: TaskId,
    pub fingerprint: Vec<u8>,
}

/// The tasks that idempotency keys were first used for.
pub async fn named(
    conn: &mut PgConnection,
    keys: &[KeyId],
    names: &[String],
) -> sqlx::Result<Vec<Named>> {
    query_as!(
        Named,
        r#"SELECT DISTINCT ON (t.api_key_id, t.idempotency_key) t.api_key_id,
               t.idempotency_key AS "idempotency_key!", t.id AS task_id, t.fingerprint
           FROM tasks t JOIN UNNEST($1::uuid[], $2::text[]) AS asked (api_key_id, name)
               ON t.api_key_id = asked.api_key_id AND t.idempotency_key = asked.name
           WHERE t.created_at > now() - interval '24 hours'
           ORDER BY t.api_key_id, t.idempotency_key, t.id DESC"#,
        keys,
        names,
    )
    .fetch_all(conn)
    .await
}

/// The task of the same request by the same key, which a retry joins: one that is open, or that ended
/// well less than ten minutes ago.
#[derive(Clone, Debug)]
pub struct Same {
    pub api_key_id: KeyId,
    pub fingerprint: Vec<u8>,
    pub task_id: TaskId,
}

pub async fn same(
    conn: &mut PgConnection,
    keys: &[KeyId],
    fingerprints: &[Vec<u8>],
) -> sqlx::Result<Vec<Same>> {
    query_as!(
        Same,
        "SELECT DISTINCT ON (t.api_key_id, t.fingerprint) t.api_key_id, t.fingerprint, t.id AS task_id
         FROM tasks t JOIN UNNEST($1::uuid[], $2::bytea[]) AS asked (api_key_id, fingerprint)
             ON t.api_key_id = asked.api_key_id AND t.fingerprint = asked.fingerprint
         WHERE t.status IN ('queued', 'running')
             OR (t.status = 'completed' AND t.ended_at > now() - interval '10 minutes')
         ORDER BY t.api_key_id, t.fingerprint, t.id DESC",
        keys,
        fingerprints,
    )
    .fetch_all(conn)
    .await
}

/// How many tasks a key has open.
pub async fn open_of(conn: &mut PgConnection, key_id: KeyId) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT (SELECT count(*) FROM tasks WHERE status = 'running' AND api_key_id = $1)
                + (SELECT count(*) FROM tasks WHERE status = 'queued' AND api_key_id = $1) AS "count!""#,
        key_id,
    )
    .fetch_one(conn)
    .await
}
