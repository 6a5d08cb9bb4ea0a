//! The queue: who works on a task, for how long, and how it ends. The database's clock decides; a task
//! is changed only under the fence of its latest claim.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar, types::Json};

use super::{Row, interval};
use crate::{
    ids::{AccountId, TaskId},
    money::Cny,
    tasks::{Failure, Image, Outcome, Request, Status, Task},
};

/// Where tasks are announced that wait for a worker, and those that have ended.
pub const QUEUED_CHANNEL: &str = "easel_queued";
pub const ENDED_CHANNEL: &str = "easel_ended";

/// How many ids fit one notification's 8000 bytes.
const NOTIFIED_IDS_MAX: usize = 200;

/// Tells workers that tasks are queued, once the transaction commits. A hint: they look anyway.
pub async fn notify_queued(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", QUEUED_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}

/// Claims up to `limit` queued tasks, the longest waiting first.
pub async fn claim(
    conn: &mut PgConnection,
    limit: i64,
    lease: Duration,
) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"UPDATE tasks AS t
           SET status = 'running', lease_until = now() + $2, attempts = attempts + 1, fence = fence + 1
           FROM (SELECT id FROM tasks
                 WHERE status = 'queued' AND run_at <= now() AND deadline_at > now()
                 ORDER BY run_at, id LIMIT $1 FOR UPDATE SKIP LOCKED) AS next
           WHERE t.id = next.id
           RETURNING t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Json<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.attempts, t.fence,
               (extract(epoch FROM t.deadline_at - now()) * 1000)::bigint AS "left_ms!",
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Json<Vec<Image>>",
               t.failure AS "failure: Json<Failure>""#,
        limit,
        interval(lease),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// Renews the leases of claimed tasks; those that are not in the answer were lost.
pub async fn renew(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
    lease: Duration,
) -> sqlx::Result<Vec<TaskId>> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    query_scalar!(
        "UPDATE tasks SET lease_until = now() + $3
         FROM UNNEST($1::uuid[], $2::bigint[]) AS mine (id, fence)
         WHERE tasks.id = mine.id AND tasks.fence = mine.fence AND status = 'running'
         RETURNING tasks.id",
        &ids,
        &fences,
        interval(lease),
    )
    .fetch_all(conn)
    .await
}

/// Puts claimed tasks back into the queue, as if they had not been begun: at a shutdown.
pub async fn unclaim(conn: &mut PgConnection, claims: &[(TaskId, i64)]) -> sqlx::Result<u64> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, attempts = attempts - 1
         FROM UNNEST($1::uuid[], $2::bigint[]) AS mine (id, fence)
         WHERE tasks.id = mine.id AND tasks.fence = mine.fence AND status = 'running'",
        &ids,
        &fences,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Puts tasks whose worker is lost back into the queue, where attempts and time are left. Their
/// number.
pub async fn requeue_lost(conn: &mut PgConnection, attempts_max: i16) -> sqlx::Result<u64> {
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, run_at = now()
         WHERE id IN (SELECT id FROM tasks
                      WHERE status = 'running' AND lease_until < now()
                          AND attempts < $1 AND deadline_at > now()
                      FOR UPDATE SKIP LOCKED)",
        attempts_max,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Open tasks that nobody will end: past their deadline, or lost with no attempt left.
pub async fn hopeless(
    conn: &mut PgConnection,
    attempts_max: i16,
    limit: i64,
) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, attempts, fence,
               (extract(epoch FROM deadline_at - now()) * 1000)::bigint AS "left_ms!",
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks
           WHERE (status = 'queued' AND deadline_at <= now())
               OR (status = 'running' AND lease_until < now()
                   AND (attempts >= $1 OR deadline_at <= now()))
           LIMIT $2"#,
        attempts_max,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// How a task is to end, by whoever has its fence.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub id: TaskId,
    pub fence: i64,
    pub outcome: &'a Outcome,
}

/// What a task came to, for the ledger.
#[derive(Debug)]
pub struct Ended {
    pub id: TaskId,
    pub account_id: AccountId,
    pub held: Cny,
    pub cost: Cny,
    pub at: DateTime<Utc>,
}

/// Ends tasks. Those that are not in the answer had ended already, or had been claimed anew: nothing
/// of them was changed.
pub async fn end(conn: &mut PgConnection, endings: &[Ending<'_>]) -> sqlx::Result<Vec<Ended>> {
    let (ids, fences): (Vec<_>, Vec<_>) = endings.iter().map(|e| (e.id, e.fence)).unzip();
    let (images, failures): (Vec<_>, Vec<_>) = endings
        .iter()
        .map(|ending| match ending.outcome {
            Outcome::Completed(images) => (Some(Json(images)), None),
            Outcome::Failed(failure) => (None, Some(Json(failure))),
        })
        .unzip();
    query_as!(
        Ended,
        r#"UPDATE tasks AS t
           SET status = CASE WHEN e.images IS NULL THEN 'failed' ELSE 'completed' END,
               cost = unit_price * COALESCE(jsonb_array_length(e.images), 0),
               ended_at = now(), lease_until = NULL, images = e.images, failure = e.failure
           FROM UNNEST($1::uuid[], $2::bigint[], $3::jsonb[], $4::jsonb[])
               AS e (id, fence, images, failure)
           WHERE t.id = e.id AND t.fence = e.fence AND t.status IN ('queued', 'running')
           RETURNING t.id, t.account_id, t.unit_price * t.n AS "held!: Cny", t.cost AS "cost!: Cny",
               t.ended_at AS "at!""#,
        &ids,
        &fences,
        &images as &[Option<Json<&Vec<Image>>>],
        &failures as &[Option<Json<&Failure>>],
    )
    .fetch_all(conn)
    .await
}

/// Tells who waits elsewhere that tasks have ended, once the transaction commits. A hint.
pub async fn notify_ended(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<()> {
    for chunk in ids.chunks(NOTIFIED_IDS_MAX) {
        let payload = chunk
            .iter()
            .map(|id| id.simple().to_string())
            .collect::<Vec<_>>()
            .join(",");
        query!("SELECT pg_notify($1, $2)", ENDED_CHANNEL, payload)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// How many tasks wait for a worker, counted to `at_most`.
pub async fn count_queued(conn: &mut PgConnection, at_most: i64) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (SELECT FROM tasks WHERE status = 'queued' LIMIT $1) q"#,
        at_most,
    )
    .fetch_one(conn)
    .await
}
