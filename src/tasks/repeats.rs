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
        r#"SELECT DISTINCT ON (t.api_key_id, t.idempotency_key) t.api_key_id AS "api_key_id!",
               t.idempotency_key AS "idempotency_key!", t.id AS "task_id!", t.fingerprint AS "fingerprint!"
           FROM UNNEST($1::uuid[], $2::text[]) AS asked (api_key_id, name) CROSS JOIN LATERAL (
               SELECT id, api_key_id, idempotency_key, fingerprint, created_at FROM open_tasks o
               WHERE o.api_key_id = asked.api_key_id AND o.idempotency_key = asked.name
               UNION ALL
               SELECT id, api_key_id, idempotency_key, fingerprint, created_at FROM task_history h
               WHERE date_bin('1 day', h.created_at, 'epoch') IN (date_bin('1 day', now(), 'epoch'),
                       date_bin('1 day', now() - interval '24 hours', 'epoch'))
                   AND h.api_key_id = asked.api_key_id AND h.idempotency_key = asked.name
           ) t
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
               same.joined AS "joined!", same.waiter, same.is_open AS "is_open!",
               same.waiter::oid IN (SELECT process FROM there) IS TRUE AS "is_there!"
           FROM (SELECT DISTINCT * FROM UNNEST($1::uuid[], $2::bytea[]) AS asked (api_key_id, fingerprint)) asked
           CROSS JOIN LATERAL (
               SELECT t.* FROM (
                   SELECT o.api_key_id, o.fingerprint, o.id, o.joined, o.waiter, true AS is_open FROM open_tasks o
                   WHERE o.api_key_id = asked.api_key_id AND o.fingerprint = asked.fingerprint
                   UNION ALL
                   SELECT h.api_key_id, h.fingerprint, h.id, h.joined, h.waiter, false FROM task_history h
                   WHERE date_bin('10 minutes', h.ended_at, 'epoch') IN (date_bin('10 minutes', now(), 'epoch'),
                           date_bin('10 minutes', now() - interval '10 minutes', 'epoch'))
                       AND h.api_key_id = asked.api_key_id AND h.fingerprint = asked.fingerprint
                       AND h.status = 'completed' AND h.ended_at > now() - interval '10 minutes'
               ) t
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
        "WITH j AS MATERIALIZED (
             SELECT * FROM UNNEST($1::uuid[], $2::smallint[], $3::int[]) AS j (id, number, waiter)
         ), open AS (
             UPDATE open_tasks SET joined = j.number, waiter = j.waiter FROM j
             WHERE open_tasks.id = j.id AND open_tasks.id = ANY($1)
         )
         UPDATE task_history SET joined = j.number, waiter = j.waiter FROM j
         WHERE task_history.id = j.id AND task_history.id = ANY($1)",
        &ids as _,
        &numbers,
        &waiters as &[Option<i32>],
    )
    .execute(conn)
    .await
    .map(drop)
}

/// How many open tasks a key has. Counts no further than `limit`.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn open_of(conn: &mut PgConnection, key_id: KeyId, limit: u32) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (SELECT FROM open_tasks WHERE api_key_id = $1 LIMIT $2) AS open"#,
        key_id as _,
        i64::from(limit),
    )
    .fetch_one(conn)
    .await
}
