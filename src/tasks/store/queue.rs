//! Claims tasks from the queue, renews the leases of claims, and requeues tasks. Claims run one at a time across all
//! replicas, so that no route exceeds its limit and accounts take turns. The database's clock decides.

use std::{collections::HashMap, time::Duration};

use sqlx::{PgConnection, query, query_as, query_scalar, types::Json};

use super::row::{Parsed, Row, readable};
use crate::{
    db::interval,
    failure::Class,
    ids::TaskId,
    money::Cny,
    tasks::{Assignment, Attempt, Claim, Request, Status, Task},
};

/// The advisory lock that a claiming transaction holds.
const QUEUE_LOCK: i64 = 0x6561_7365_6c51;

/// Whether any task could be claimed now.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn is_any_waiting(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM open_tasks
           WHERE status = 'queued' AND run_at <= now() AND deadline_at > now()) AS "any!""#
    )
    .fetch_one(conn)
    .await
}

/// Takes the claim lock for this transaction. `false`: another transaction holds it.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn lock_queue(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock($1) AS "locked!""#,
        QUEUE_LOCK
    )
    .fetch_one(conn)
    .await
}

/// How many tasks are running, by model and route, for these models.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn running(
    conn: &mut PgConnection,
    models: &[String],
) -> sqlx::Result<Vec<(String, String, i64)>> {
    let rows = query!(
        r#"SELECT model, route AS "route!", count(*) AS "running!" FROM open_tasks
           WHERE status = 'running' AND route IS NOT NULL AND model = ANY($1)
           GROUP BY model, route"#,
        models,
    )
    .fetch_all(conn)
    .await?;
    let counts = rows.into_iter();
    Ok(counts
        .map(|row| (row.model, row.route, row.running))
        .collect())
}

/// Claims queued tasks under a new fence. Jobs are resumed only over the same route. A task that cannot be read is left
/// to its lease, and ends with its last attempt.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn claim(
    conn: &mut PgConnection,
    assignments: Vec<(TaskId, Assignment)>,
    lease: Duration,
) -> sqlx::Result<Vec<Claim>> {
    let (ids, routes): (Vec<TaskId>, Vec<Option<&str>>) = assignments
        .iter()
        .map(|(id, assignment)| (*id, assignment.route.as_deref()))
        .unzip();
    let rows = query_as!(
        Row,
        r#"WITH claimed AS (
               UPDATE open_tasks AS t
               SET status = 'running', lease_until = now() + $3, attempts = attempts + 1, fence = fence + 1,
                   route = next.route,
                   jobs = CASE WHEN t.route IS NOT DISTINCT FROM next.route THEN jobs ELSE '{}' END
               FROM UNNEST($1::uuid[], $2::text[]) AS next (id, route)
               WHERE t.id = next.id AND t.id = ANY($1) AND status = 'queued'
               RETURNING t.*
           ), reached AS (
               INSERT INTO queue_turns AS q SELECT model, max(turn) FROM claimed GROUP BY model
               ON CONFLICT (model) DO UPDATE SET turn = EXCLUDED.turn WHERE q.turn < EXCLUDED.turn
           )
           SELECT id AS "id!", account_id AS "account_id!", api_key_id AS "api_key_id!", status AS "status!: Status",
               request AS "request!: Parsed<Request>", unit_price AS "unit_price!: Cny", file_id AS "file_id!",
               created_at AS "created_at!", attempts AS "attempts!", fence AS "fence!",
               (extract(epoch FROM deadline_at - now()) * 1000)::bigint AS "left_ms!"
           FROM claimed"#,
        &ids as _,
        &routes as &[Option<&str>],
        interval(lease),
    )
    .fetch_all(conn)
    .await?;
    let mut assignments: HashMap<TaskId, Assignment> = assignments.into_iter().collect();
    let claim = |task: Task| {
        let assignment = assignments.remove(&task.id)?;
        Some(Claim { task, assignment })
    };
    Ok(readable(rows, Task::try_from).filter_map(claim).collect())
}

/// Stores the upstream's job handle of a call, counted from 0. `false`: the claim is no longer current.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn note_job(
    conn: &mut PgConnection,
    (id, fence): (TaskId, i64),
    call: u8,
    job: &str,
) -> sqlx::Result<bool> {
    let done = query!(
        "UPDATE open_tasks SET jobs[$3 + 1] = $4 WHERE id = $1 AND fence = $2 AND status = 'running'",
        id as _,
        fence,
        i32::from(call),
        job,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Requeues a task after a failed attempt, to be retried after `wait` over any route. `false`: the
/// claim is no longer current.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn requeue(
    conn: &mut PgConnection,
    (id, fence): (TaskId, i64),
    attempt: &Attempt,
    wait: Duration,
) -> sqlx::Result<bool> {
    let done = query!(
        "UPDATE open_tasks SET status = 'queued', lease_until = NULL, fence = fence + 1, run_at = now() + $4,
             route = NULL, jobs = '{}', tried = tried || $3
         WHERE id = $1 AND fence = $2 AND status = 'running'",
        id as _,
        fence,
        Json(attempt) as Json<&Attempt>,
        interval(wait),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Requeues claimed tasks at shutdown, as if they had not been begun. Returns their number.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn release_claims(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
) -> sqlx::Result<u64> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    let done = query!(
        "UPDATE open_tasks SET status = 'queued', lease_until = NULL, attempts = attempts - 1, fence = open_tasks.fence + 1,
             route = CASE WHEN jobs = '{}' THEN NULL ELSE route END
         FROM UNNEST($1::uuid[], $2::bigint[]) AS mine (id, fence)
         WHERE open_tasks.id = mine.id AND open_tasks.id = ANY($1) AND open_tasks.fence = mine.fence
             AND status = 'running'",
        &ids as _,
        &fences,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Renews the leases of claimed tasks. Claims missing from the result are lost.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn renew(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
    lease: Duration,
) -> sqlx::Result<Vec<TaskId>> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    // Locks in id order, as transactions that end some of these tasks do.
    query_scalar!(
        r#"WITH mine AS MATERIALIZED (
             SELECT t.id FROM open_tasks t JOIN UNNEST($1::uuid[], $2::bigint[]) AS m (id, fence)
                 ON t.id = m.id AND t.fence = m.fence
             WHERE t.id = ANY($1) AND t.status = 'running' ORDER BY t.id FOR NO KEY UPDATE OF t
         )
         UPDATE open_tasks SET lease_until = now() + $3 FROM mine
         WHERE open_tasks.id = mine.id AND open_tasks.id = ANY($1)
         RETURNING open_tasks.id AS "id: TaskId""#,
        &ids as _,
        &fences,
        interval(lease),
    )
    .fetch_all(conn)
    .await
}

/// Whether the lease of any task has expired.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn is_any_lost(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM open_tasks WHERE status = 'running' AND lease_until < now()) AS "any!""#
    )
    .fetch_one(conn)
    .await
}

/// Requeues tasks whose worker was lost, if attempts and time are left. Returns their number. A job
/// with an upstream handle is resumed over the same route. The lost attempt is recorded as tried.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn requeue_lost(conn: &mut PgConnection, attempts_max: i16) -> sqlx::Result<u64> {
    let lost = Attempt {
        route: String::new(),
        jobs: Vec::new(),
        duration_ms: 0,
        class: Some(Class::Lost),
    };
    let done = query!(
        "UPDATE open_tasks SET status = 'queued', lease_until = NULL, run_at = now(), fence = fence + 1,
             route = CASE WHEN jobs = '{}' THEN NULL ELSE route END,
             tried = CASE WHEN route IS NULL THEN tried
                 ELSE tried || jsonb_set($2, '{route}', to_jsonb(route)) END
         WHERE id = ANY(ARRAY(SELECT id FROM open_tasks
                              WHERE status = 'running' AND lease_until < now()
                                  AND attempts < $1 AND deadline_at > now()
                              FOR UPDATE SKIP LOCKED))",
        attempts_max,
        Json(lost) as Json<Attempt>,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
