//! The end of tasks, and the leases of those that run. The database's clock decides; a task is changed
//! only under the fence of its latest claim.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, query, query_as, query_scalar, types::Json};

use super::interval;
use crate::{
    ids::{AccountId, TaskId},
    money::Cny,
    tasks::{Attempt, Failure, Image, Outcome},
};

/// Where tasks are announced that wait for a worker, and those that have ended.
pub const QUEUED_CHANNEL: &str = "easel_queued";
pub const ENDED_CHANNEL: &str = "easel_ended";
/// Where all gateways are told to read their configuration again.
pub const RELOAD_CHANNEL: &str = "easel_reload";

/// How many ids fit one notification's 8000 bytes.
const NOTIFIED_IDS_MAX: usize = 200;

/// Renews the leases of claimed tasks; those that are not in the answer were lost.
pub async fn renew(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
    lease: Duration,
) -> sqlx::Result<Vec<TaskId>> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    // Locked in the order of their ids, as by whoever ends some of them at the same time.
    query_scalar!(
        "WITH mine AS MATERIALIZED (
             SELECT t.id FROM tasks t JOIN UNNEST($1::uuid[], $2::bigint[]) AS m (id, fence)
                 ON t.id = m.id AND t.fence = m.fence
             WHERE t.status = 'running' ORDER BY t.id FOR NO KEY UPDATE OF t
         )
         UPDATE tasks SET lease_until = now() + $3 FROM mine WHERE tasks.id = mine.id
         RETURNING tasks.id",
        &ids,
        &fences,
        interval(lease),
    )
    .fetch_all(conn)
    .await
}

/// Whether the lease of any task has run out.
pub async fn is_any_lost(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM tasks WHERE status = 'running' AND lease_until < now()) AS "any!""#
    )
    .fetch_one(conn)
    .await
}

/// Which open tasks are to be ended by whoever finds them. What they ask for need not be read for that.
#[derive(Clone, Copy, Debug)]
pub enum Overdue {
    /// Past their deadline. Whoever works on one has a grace to end it itself.
    Expired { grace: Duration },
    /// Lost by their workers, with no attempt left.
    Exhausted { attempts_max: i16 },
}

/// An open task that is to be ended.
#[derive(Clone, Copy, Debug)]
pub struct Doomed {
    pub id: TaskId,
    pub fence: i64,
    pub account_id: AccountId,
}

/// Locks some of them that nobody else has locked, but for those of some accounts.
pub async fn overdue(
    conn: &mut PgConnection,
    which: Overdue,
    except: &[AccountId],
    limit: i64,
) -> sqlx::Result<Vec<Doomed>> {
    match which {
        Overdue::Expired { grace } => {
            query_as!(
                Doomed,
                "SELECT id, fence, account_id FROM tasks
                 WHERE status IN ('queued', 'running') AND deadline_at <= now()
                     AND (status = 'queued' OR lease_until < now() OR deadline_at <= now() - $3::interval)
                     AND account_id <> ALL($1)
                 ORDER BY deadline_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except,
                limit,
                interval(grace),
            )
            .fetch_all(conn)
            .await
        }
        Overdue::Exhausted { attempts_max } => {
            query_as!(
                Doomed,
                "SELECT id, fence, account_id FROM tasks
                 WHERE status = 'running' AND lease_until < now() AND attempts >= $3
                     AND account_id <> ALL($1)
                 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except,
                limit,
                attempts_max,
            )
            .fetch_all(conn)
            .await
        }
    }
}

/// How a task is to end, by whoever has its fence.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub id: TaskId,
    pub fence: i64,
    pub outcome: &'a Outcome,
    /// The attempt that led there, if one was made.
    pub attempt: Option<&'a Attempt>,
    /// What the upstream says that it has taken.
    pub usage: &'a [Value],
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
    let attempts: Vec<_> = endings.iter().map(|e| e.attempt.map(Json)).collect();
    let usages: Vec<_> = endings
        .iter()
        .map(|e| (!e.usage.is_empty()).then_some(Json(e.usage)))
        .collect();
    query_as!(
        Ended,
        r#"WITH ending AS (
               SELECT * FROM UNNEST($1::uuid[], $2::bigint[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::jsonb[])
                   AS e (id, fence, images, failure, attempt, usage)
           ), mine AS MATERIALIZED (
               SELECT t.id FROM tasks t JOIN ending e ON t.id = e.id AND t.fence = e.fence
               WHERE t.status IN ('queued', 'running') ORDER BY t.id FOR NO KEY UPDATE OF t
           )
           UPDATE tasks AS t
           SET status = CASE WHEN e.images IS NULL THEN 'failed' ELSE 'completed' END,
               cost = unit_price * COALESCE(jsonb_array_length(e.images), 0),
               ended_at = now(), lease_until = NULL, images = e.images, failure = e.failure,
               usage = e.usage, tried = CASE WHEN e.attempt IS NULL THEN tried ELSE tried || e.attempt END
           FROM mine JOIN ending e USING (id)
           WHERE t.id = mine.id
           RETURNING t.id, t.account_id, t.unit_price * t.n AS "held!: Cny", t.cost AS "cost!: Cny",
               t.ended_at AS "at!""#,
        &ids,
        &fences,
        &images as &[Option<Json<&Vec<Image>>>],
        &failures as &[Option<Json<&Failure>>],
        &attempts as &[Option<Json<&Attempt>>],
        &usages as &[Option<Json<&[Value]>>],
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
