//! Finds requests that repeat an earlier one. Runs while the account is locked, so that two
//! simultaneous repeats cannot both be the first.

use chrono::DateTime;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, query, query_as, query_scalar};
use uuid::Uuid;

use super::{Reference, Request, wait::Waiters};
use crate::{
    db,
    ids::{KeyId, TaskId},
    storage::Key,
};

/// Identifies a request by everything it asks for: 16 bytes of SHA-256. References sent inside the
/// request count by their bytes, not by where they are stored.
pub fn fingerprint(request: &Request) -> serde_json::Result<Vec<u8>> {
    let mut request = request.clone();
    for reference in request.references.iter_mut().chain(&mut request.mask) {
        if let Reference::Stored(stored) = reference
            && !stored.digest.is_empty()
        {
            stored.object = Key::upload(DateTime::UNIX_EPOCH, Uuid::nil().into(), stored.format);
        }
    }
    Ok(Sha256::digest(serde_json::to_vec(&request)?)[..16].to_vec())
}

/// The number of a retry, as the database stores it.
pub fn number(retry: u16) -> i16 {
    i16::try_from(retry).unwrap_or(i16::MAX)
}

/// The task that an idempotency key of the last 24 hours belongs to.
#[derive(Clone, Debug)]
pub struct Named {
    /// The API key that sent it. Others may use the same idempotency key.
    pub api_key_id: KeyId,
    /// As the client sent it.
    pub idempotency_key: String,
    /// The task.
    pub task_id: TaskId,
    /// Of the task's request: see [`fingerprint`].
    pub fingerprint: Vec<u8>,
}

/// Finds the tasks that idempotency keys were first used for.
#[tracing::instrument(level = "debug", skip_all)]
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
        keys as _,
        names,
    )
    .fetch_all(conn)
    .await
}

/// At most this many equal tasks are considered, starting with those that no retry has joined and
/// nobody waits for. This keeps retries cheap for a client that queues a thousand equal requests.
const SAME_MAX: i64 = 256;

/// A task with the same request and API key that a retry may join: it is open, or completed less
/// than ten minutes ago.
#[derive(Clone, Debug)]
pub struct Same {
    /// The API key that requested both.
    pub api_key_id: KeyId,
    /// Of both requests: see [`fingerprint`].
    pub fingerprint: Vec<u8>,
    /// The task.
    pub task_id: TaskId,
    /// Whether it is still queued or running.
    pub is_open: bool,
    /// The number of the latest retry that joined it; 0: none.
    pub joined: i16,
    /// The process where its caller waits or was answered; 0: the caller has disconnected; `None`: nobody waited.
    pub waiter: Option<i32>,
    /// Whether that process is alive.
    pub is_there: bool,
}

impl Same {
    /// Whether its caller still waits for it or has received the response.
    pub fn is_awaited(&self, waiters: &Waiters) -> bool {
        match self.waiter {
            None | Some(0) => false,
            // For this process's own tasks, memory is more current than the database.
            Some(process) if process == waiters.process() => {
                !waiters.has_left(self.task_id) && (!self.is_open || waiters.has(self.task_id))
            }
            Some(_) => self.is_there,
        }
    }
}

/// Finds the tasks that equal these requests and that a retry may join.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn same(
    conn: &mut PgConnection,
    keys: &[KeyId],
    fingerprints: &[Vec<u8>],
) -> sqlx::Result<Vec<Same>> {
    query_as!(
        Same,
        r#"WITH there AS MATERIALIZED (
               SELECT l.objid AS process FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND l.classid = $3::int::oid
           )
           SELECT same.api_key_id AS "api_key_id!", same.fingerprint AS "fingerprint!", same.id AS "task_id!",
               same.joined AS "joined!", same.waiter, same.status IN ('queued', 'running') AS "is_open!",
               same.waiter::oid IN (SELECT process FROM there) IS TRUE AS "is_there!"
           FROM (SELECT DISTINCT * FROM UNNEST($1::uuid[], $2::bytea[]) AS asked (api_key_id, fingerprint)) asked
           CROSS JOIN LATERAL (
               SELECT t.api_key_id, t.fingerprint, t.id, t.joined, t.waiter, t.status FROM tasks t
               WHERE t.api_key_id = asked.api_key_id AND t.fingerprint = asked.fingerprint
                   AND (t.status IN ('queued', 'running')
                       OR (t.status = 'completed' AND t.ended_at > now() - interval '10 minutes'))
               ORDER BY t.joined, COALESCE(t.waiter, 0) <> 0, t.id DESC LIMIT $4
           ) same"#,
        keys as _,
        fingerprints,
        db::PRESENCE_LOCK,
        SAME_MAX,
    )
    .fetch_all(conn)
    .await
}

/// A retry that joins a task.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// The task.
    pub task_id: TaskId,
    /// The number of the retry, from 1.
    pub number: i16,
    /// The process where the retry's caller waits; `None`: it does not wait.
    pub waiter: Option<i32>,
}

/// Records which tasks retries have joined.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn join(conn: &mut PgConnection, joins: &[Join]) -> sqlx::Result<()> {
    if joins.is_empty() {
        return Ok(());
    }
    let ids: Vec<TaskId> = joins.iter().map(|join| join.task_id).collect();
    let numbers: Vec<i16> = joins.iter().map(|join| join.number).collect();
    let waiters: Vec<Option<i32>> = joins.iter().map(|join| join.waiter).collect();
    query!(
        "UPDATE tasks SET joined = j.number, waiter = j.waiter
         FROM UNNEST($1::uuid[], $2::smallint[], $3::int[]) AS j (id, number, waiter)
         WHERE tasks.id = j.id",
        &ids as _,
        &numbers,
        &waiters as &[Option<i32>],
    )
    .execute(conn)
    .await
    .map(drop)
}

/// How many open tasks a key has.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn open_of(conn: &mut PgConnection, key_id: KeyId) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT (SELECT count(*) FROM tasks WHERE status = 'running' AND api_key_id = $1)
                + (SELECT count(*) FROM tasks WHERE status = 'queued' AND api_key_id = $1) AS "count!""#,
        key_id as _,
    )
    .fetch_one(conn)
    .await
}
