//! The queue: who works on which task next. Claims are made one after the other, by all replicas together,
//! so that what a route may do at once is never exceeded and accounts take turns.

use std::time::Duration;

use sqlx::{PgConnection, query, query_as, query_scalar, types::Json};

use super::{QUEUED_CHANNEL, RELOAD_CHANNEL, Row, interval};
use crate::{
    failure::Class,
    ids::TaskId,
    money::Cny,
    tasks::{Assignment, Attempt, Failure, Image, Request, Status, Task},
};

/// Of the lock that who claims holds until the transaction ends.
const QUEUE_LOCK: i64 = 0x6561_7365_6c51;

/// Tells workers that tasks are queued, once the transaction commits. A hint: they look anyway.
pub async fn notify_queued(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", QUEUED_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}

/// Tells all gateways to read their configuration again.
pub async fn notify_reload(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", RELOAD_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}

/// Whether there is a task that could be claimed now.
pub async fn is_any_waiting(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM tasks
           WHERE status = 'queued' AND run_at <= now() AND deadline_at > now()) AS "any!""#
    )
    .fetch_one(conn)
    .await
}

/// Whether this transaction is now the one that claims; `false`: another is at it.
pub async fn lock_queue(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock($1) AS "locked!""#,
        QUEUE_LOCK
    )
    .fetch_one(conn)
    .await
}

/// How many tasks run over each route of these models.
pub async fn running(
    conn: &mut PgConnection,
    models: &[String],
) -> sqlx::Result<Vec<(String, String, i64)>> {
    let rows = query!(
        r#"SELECT model, route AS "route!", count(*) AS "running!" FROM tasks
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

/// The models and needs of the tasks in the queue, each pair once.
pub async fn queued_classes(conn: &mut PgConnection) -> sqlx::Result<Vec<(String, i16)>> {
    let rows = query!(
        r#"WITH RECURSIVE class AS (
               (SELECT model, needs FROM tasks WHERE status = 'queued' ORDER BY model, needs LIMIT 1)
               UNION ALL
               SELECT next.model, next.needs FROM class CROSS JOIN LATERAL (
                   SELECT t.model, t.needs FROM tasks t
                   WHERE t.status = 'queued' AND (t.model, t.needs) > (class.model, class.needs)
                   ORDER BY t.model, t.needs LIMIT 1) AS next
           )
           SELECT model AS "model!", needs AS "needs!" FROM class"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.model, row.needs)).collect())
}

/// Tasks of one model with the same needs, of which some may be claimed now.
#[derive(Clone, Debug)]
pub struct Demand {
    pub model: String,
    pub needs: i16,
    /// Those with the same number share their capacity.
    pub pool: i32,
    /// How many tasks of the pool may be claimed.
    pub capacity: u32,
    /// How much time a task must have left.
    pub least: Duration,
}

/// A task in the queue that may be claimed.
#[derive(Debug)]
pub struct Waiting {
    pub id: TaskId,
    pub model: String,
    pub needs: i16,
    /// Until its deadline.
    pub left: Duration,
    pub assignment: Assignment,
}

/// The tasks of these models and needs that come next, `limit` at most. Accounts take turns: whose tasks run
/// already, or come before in the queue, waits longer; and then, who was served last.
pub async fn waiting(
    conn: &mut PgConnection,
    demands: &[Demand],
    limit: i64,
) -> sqlx::Result<Vec<Waiting>> {
    let columns = DemandColumns::of(demands);
    let rows = query!(
        r#"WITH RECURSIVE class AS MATERIALIZED (
               SELECT * FROM UNNEST($1::text[], $2::smallint[], $3::int[], $4::bigint[], $5::bigint[])
                   AS class (model, needs, pool, capacity, least_ms)
           ), line AS (
               SELECT class.model, class.needs, first.account_id FROM class CROSS JOIN LATERAL (
                   SELECT t.account_id FROM tasks t
                   WHERE t.status = 'queued' AND t.model = class.model AND t.needs = class.needs
                   ORDER BY t.account_id LIMIT 1) AS first
               UNION ALL
               SELECT line.model, line.needs, next.account_id FROM line CROSS JOIN LATERAL (
                   SELECT t.account_id FROM tasks t
                   WHERE t.status = 'queued' AND t.model = line.model AND t.needs = line.needs
                       AND t.account_id > line.account_id
                   ORDER BY t.account_id LIMIT 1) AS next
           ), at_work AS (
               SELECT account_id, count(*) AS tasks FROM tasks WHERE status = 'running' GROUP BY account_id
           ), head AS (
               SELECT next.id, next.run_at, turns.served_at, class.pool, class.capacity,
                   COALESCE(at_work.tasks, 0)
                       + row_number() OVER (PARTITION BY line.account_id ORDER BY next.run_at, next.id) AS turn
               FROM line
               JOIN class USING (model, needs)
               LEFT JOIN at_work USING (account_id)
               LEFT JOIN turns USING (account_id)
               CROSS JOIN LATERAL (
                   SELECT t.id, t.run_at FROM tasks t
                   WHERE t.status = 'queued' AND t.model = line.model AND t.needs = line.needs
                       AND t.account_id = line.account_id AND t.run_at <= now() AND t.deadline_at > now()
                       AND (t.deadline_at >= now() + class.least_ms * INTERVAL '1 millisecond'
                           OR t.route IS NOT NULL)
                   ORDER BY t.run_at, t.id LIMIT LEAST(class.capacity, $6)) AS next
           ), ranked AS (
               SELECT id, run_at, turn, served_at, capacity, row_number() OVER (
                   PARTITION BY pool ORDER BY turn, served_at NULLS FIRST, run_at, id) AS place
               FROM head
           ), chosen AS MATERIALIZED (
               SELECT id, run_at, turn, served_at FROM ranked WHERE place <= capacity
               ORDER BY turn, served_at NULLS FIRST, run_at, id LIMIT $6
           )
           SELECT t.id, t.model, t.needs, t.route, t.jobs AS "jobs: Vec<Option<String>>",
               t.tried AS "tried: Json<Vec<Attempt>>",
               (extract(epoch FROM t.deadline_at - now()) * 1000)::bigint AS "left_ms!"
           FROM chosen JOIN tasks t ON t.id = chosen.id
           ORDER BY turn, served_at NULLS FIRST, chosen.run_at, t.id"#,
        &columns.models,
        &columns.needs,
        &columns.pools,
        &columns.capacities,
        &columns.least_ms,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let waiting = rows.into_iter().map(|row| Waiting {
        id: row.id,
        model: row.model,
        needs: row.needs,
        left: Duration::from_millis(u64::try_from(row.left_ms).unwrap_or_default()),
        assignment: Assignment {
            route: row.route,
            jobs: row.jobs,
            tried: row.tried.0,
        },
    });
    Ok(waiting.collect())
}

/// Demands, column by column, as UNNEST takes them.
struct DemandColumns {
    models: Vec<String>,
    needs: Vec<i16>,
    pools: Vec<i32>,
    capacities: Vec<i64>,
    least_ms: Vec<i64>,
}

impl DemandColumns {
    fn of(demands: &[Demand]) -> Self {
        let all = demands.iter();
        let least_ms = all
            .clone()
            .map(|demand| i64::try_from(demand.least.as_millis()).unwrap_or(i64::MAX));
        Self {
            models: all.clone().map(|demand| demand.model.clone()).collect(),
            needs: all.clone().map(|demand| demand.needs).collect(),
            pools: all.clone().map(|demand| demand.pool).collect(),
            capacities: all
                .clone()
                .map(|demand| i64::from(demand.capacity))
                .collect(),
            least_ms: least_ms.collect(),
        }
    }
}

/// Lets those behind some queued tasks pass for a while: these tasks wait for what others do not need.
pub async fn step_aside(
    conn: &mut PgConnection,
    ids: &[TaskId],
    wait: Duration,
) -> sqlx::Result<()> {
    query!(
        "UPDATE tasks SET run_at = now() + $2 WHERE id = ANY($1) AND status = 'queued'",
        ids,
        interval(wait),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// One that is to be claimed, over a route if there is one. `jobs` go on only over the same route.
#[derive(Clone, Debug)]
pub struct Claim {
    pub id: TaskId,
    pub route: Option<String>,
}

/// Claims tasks of the queue.
pub async fn claim(
    conn: &mut PgConnection,
    claims: &[Claim],
    lease: Duration,
) -> sqlx::Result<Vec<Task>> {
    let (ids, routes): (Vec<TaskId>, Vec<Option<&str>>) = claims
        .iter()
        .map(|claim| (claim.id, claim.route.as_deref()))
        .unzip();
    query!(
        "INSERT INTO turns (account_id, served_at)
         SELECT DISTINCT account_id, now() FROM tasks WHERE id = ANY($1)
         ON CONFLICT (account_id) DO UPDATE SET served_at = excluded.served_at",
        &ids,
    )
    .execute(&mut *conn)
    .await?;
    let rows = query_as!(
        Row,
        r#"UPDATE tasks AS t
           SET status = 'running', lease_until = now() + $3, attempts = attempts + 1, fence = fence + 1,
               route = next.route,
               jobs = CASE WHEN t.route IS NOT DISTINCT FROM next.route THEN jobs ELSE '{}' END
           FROM UNNEST($1::uuid[], $2::text[]) AS next (id, route)
           WHERE t.id = next.id AND status = 'queued'
           RETURNING t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Json<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.attempts, t.fence,
               (extract(epoch FROM t.deadline_at - now()) * 1000)::bigint AS "left_ms!",
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Json<Vec<Image>>",
               t.failure AS "failure: Json<Failure>""#,
        &ids,
        &routes as &[Option<&str>],
        interval(lease),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// Keeps the upstream's name for the job of a call, from 0. `false`: the task is no longer this claim's.
pub async fn note_job(
    conn: &mut PgConnection,
    (id, fence): (TaskId, i64),
    call: u8,
    job: &str,
) -> sqlx::Result<bool> {
    let done = query!(
        "UPDATE tasks SET jobs[$3 + 1] = $4 WHERE id = $1 AND fence = $2 AND status = 'running'",
        id,
        fence,
        i32::from(call),
        job,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts a task back into the queue after an attempt that failed, to be tried again after a wait, over
/// any route. `false`: it is no longer this claim's.
pub async fn put_back(
    conn: &mut PgConnection,
    (id, fence): (TaskId, i64),
    attempt: &Attempt,
    wait: Duration,
) -> sqlx::Result<bool> {
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, fence = fence + 1, run_at = now() + $4,
             route = NULL, jobs = '{}', tried = tried || $3
         WHERE id = $1 AND fence = $2 AND status = 'running'",
        id,
        fence,
        Json(attempt) as Json<&Attempt>,
        interval(wait),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts claimed tasks back into the queue, as if they had not been begun: at a shutdown.
pub async fn unclaim(conn: &mut PgConnection, claims: &[(TaskId, i64)]) -> sqlx::Result<u64> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, attempts = attempts - 1, fence = tasks.fence + 1,
             route = CASE WHEN jobs = '{}' THEN NULL ELSE route END
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
/// number. Jobs that the upstream has a name for are gone on with over the same route; else the lost
/// attempt is one that was tried.
pub async fn requeue_lost(conn: &mut PgConnection, attempts_max: i16) -> sqlx::Result<u64> {
    let lost = Attempt {
        route: String::new(),
        jobs: Vec::new(),
        duration_ms: 0,
        class: Some(Class::Lost),
    };
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, run_at = now(), fence = fence + 1,
             route = CASE WHEN jobs = '{}' THEN NULL ELSE route END,
             tried = CASE WHEN route IS NULL THEN tried
                 ELSE tried || jsonb_set($2, '{route}', to_jsonb(route)) END
         WHERE id IN (SELECT id FROM tasks
                      WHERE status = 'running' AND lease_until < now()
                          AND attempts < $1 AND deadline_at > now()
                      FOR UPDATE SKIP LOCKED)",
        attempts_max,
        Json(lost) as Json<Attempt>,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
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
