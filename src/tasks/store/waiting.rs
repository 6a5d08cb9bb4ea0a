//! Reads the queue: which tasks come next, and how many there are. The queue has one line per
//! model and requirements, in the order of turns.

use std::{error::Error, time::Duration};

use sqlx::{PgConnection, query, query_scalar};

use super::row::{Parsed, time_left};
use crate::{
    db::interval,
    ids::{AccountId, TaskId},
    tasks::{Assignment, Attempt},
};

/// The distinct models and requirements of the queued tasks.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn queued_classes(conn: &mut PgConnection) -> sqlx::Result<Vec<(String, i16)>> {
    let rows = query!(
        r#"WITH RECURSIVE class AS (
               (SELECT model, requirements FROM open_tasks WHERE status = 'queued' ORDER BY model, requirements LIMIT 1)
               UNION ALL
               SELECT next.model, next.requirements FROM class CROSS JOIN LATERAL (
                   SELECT t.model, t.requirements FROM open_tasks t
                   WHERE t.status = 'queued' AND (t.model, t.requirements) > (class.model, class.requirements)
                   ORDER BY t.model, t.requirements LIMIT 1) AS next
           )
           SELECT model AS "model!", requirements AS "requirements!" FROM class"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.model, row.requirements))
        .collect())
}

/// A queued class (model and requirements) of which some tasks may be claimed now.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The name in the catalog.
    pub model: String,
    /// As stored: see `Requirements::column`.
    pub requirements: i16,
    /// Classes with the same number share their capacity.
    pub pool: i32,
    /// How many tasks of the pool may be claimed.
    pub capacity: u32,
    /// The least time that a task must have left.
    pub least: Duration,
}

/// A queued task that may be claimed.
#[derive(Debug)]
pub struct Waiting {
    /// Identifies it.
    pub id: TaskId,
    /// The name in the catalog.
    pub model: String,
    /// As stored: see `Requirements::column`.
    pub requirements: i16,
    /// Time until its deadline.
    pub left: Duration,
    /// What its earlier attempts left behind.
    pub assignment: Assignment,
}

/// Returns the next tasks of these classes, at most `limit`. Accounts take turns: the least turn comes first, counted from
/// the one that its model has reached, because a renamed model has two names and counts for each.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn waiting(
    conn: &mut PgConnection,
    demands: &[Demand],
    limit: i64,
) -> sqlx::Result<Vec<Waiting>> {
    let columns = DemandColumns::of(demands);
    let rows = query!(
        r#"WITH class AS MATERIALIZED (
               SELECT * FROM UNNEST($1::text[], $2::smallint[], $3::int[], $4::bigint[], $5::bigint[])
                   AS class (model, requirements, pool, capacity, least_ms)
           ), head AS (
               SELECT next.id, next.turn - COALESCE(q.turn, 0) AS turn, class.pool, class.capacity
               FROM class LEFT JOIN queue_turns q ON q.model = class.model CROSS JOIN LATERAL (
                   SELECT t.id, t.turn FROM open_tasks t
                   WHERE t.status = 'queued' AND t.model = class.model AND t.requirements = class.requirements
                       AND t.run_at <= now() AND t.deadline_at > now()
                       AND (t.deadline_at >= now() + class.least_ms * INTERVAL '1 millisecond'
                           OR t.route IS NOT NULL)
                   ORDER BY t.turn, t.id LIMIT LEAST(class.capacity, $6)) AS next
           ), ranked AS (
               SELECT id, turn, capacity, row_number() OVER (PARTITION BY pool ORDER BY turn, id) AS rank FROM head
           ), chosen AS MATERIALIZED (
               SELECT id, turn FROM ranked WHERE rank <= capacity ORDER BY turn, id LIMIT $6
           )
           SELECT t.id, t.model, t.requirements, t.route, t.jobs AS "jobs: Vec<Option<String>>",
               t.tried AS "tried: Parsed<Vec<Attempt>>",
               (extract(epoch FROM t.deadline_at - now()) * 1000)::bigint AS "left_ms!"
           FROM chosen JOIN open_tasks t ON t.id = chosen.id AND t.id = ANY(ARRAY(SELECT id FROM chosen))
           ORDER BY chosen.turn, t.id"#,
        &columns.models,
        &columns.requirements,
        &columns.pools,
        &columns.capacities,
        &columns.least_ms,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let waiting = rows.into_iter().map(|row| Waiting {
        id: row.id.into(),
        model: row.model,
        requirements: row.requirements,
        left: time_left(row.left_ms),
        assignment: Assignment {
            route: row.route,
            jobs: row.jobs,
            tried: attempts(row.id.into(), row.tried),
        },
    });
    Ok(waiting.collect())
}

/// The attempts of a queued task; none if they cannot be read. A task left out would block the line behind it.
fn attempts(id: TaskId, tried: Parsed<Vec<Attempt>>) -> Vec<Attempt> {
    tried.of(id, "tried").unwrap_or_else(|error| {
        tracing::error!(
            error = &error as &dyn Error,
            "a task begins anew: its attempts cannot be read"
        );
        Vec::new()
    })
}

/// Demands by column, for UNNEST.
struct DemandColumns {
    models: Vec<String>,
    requirements: Vec<i16>,
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
            requirements: all.clone().map(|demand| demand.requirements).collect(),
            pools: all.clone().map(|demand| demand.pool).collect(),
            capacities: all
                .clone()
                .map(|demand| i64::from(demand.capacity))
                .collect(),
            least_ms: least_ms.collect(),
        }
    }
}

/// Delays some queued tasks, so that others may pass: they wait for a route that the others do not need.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn step_aside(
    conn: &mut PgConnection,
    ids: &[TaskId],
    wait: Duration,
) -> sqlx::Result<()> {
    query!(
        "UPDATE open_tasks SET run_at = now() + $2 WHERE id = ANY($1) AND status = 'queued'",
        ids as _,
        interval(wait),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A line of the queue: the tasks of one model, requirements and account.
#[derive(Clone, Debug)]
pub struct Line {
    /// The name in the catalog.
    pub model: String,
    /// As stored: see `Requirements::column`.
    pub requirements: i16,
    /// The account of all its tasks.
    pub account_id: AccountId,
}

/// Counts the queued tasks of each line, at most `at_most` tasks in all; and the running tasks.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn count_queued(
    conn: &mut PgConnection,
    at_most: i64,
) -> sqlx::Result<(Vec<(Line, u64)>, u64)> {
    let rows = query!(
        r#"SELECT model, requirements, account_id AS "account_id: AccountId", count(*) AS "tasks!"
           FROM (SELECT model, requirements, account_id FROM open_tasks WHERE status = 'queued' LIMIT $1) AS queued
           GROUP BY model, requirements, account_id"#,
        at_most,
    )
    .fetch_all(&mut *conn)
    .await?;
    let running =
        query_scalar!(r#"SELECT count(*) AS "running!" FROM open_tasks WHERE status = 'running'"#)
            .fetch_one(conn)
            .await?;
    let lines = rows.into_iter().map(|row| {
        let line = Line {
            model: row.model,
            requirements: row.requirements,
            account_id: row.account_id,
        };
        (line, u64::try_from(row.tasks).unwrap_or_default())
    });
    Ok((lines.collect(), u64::try_from(running).unwrap_or_default()))
}
