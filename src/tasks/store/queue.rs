//! Ends tasks and renews their leases. The database's clock decides, and a task changes only under
//! the fence of its latest claim.

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

/// The NOTIFY channel for queued tasks.
pub const QUEUED_CHANNEL: &str = "easel_queued";
/// The NOTIFY channel for ended tasks.
pub const ENDED_CHANNEL: &str = "easel_ended";
/// The NOTIFY channel that asks all gateways to reload their configuration.
pub const RELOAD_CHANNEL: &str = "easel_reload";

/// How many ids fit into the 8000 bytes of a notification.
const NOTIFIED_IDS_MAX: usize = 200;

/// Renews the leases of claimed tasks. Claims missing from the result are lost.
pub async fn renew(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
    lease: Duration,
) -> sqlx::Result<Vec<TaskId>> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    // Locks in id order, as transactions that end some of these tasks do.
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

/// Whether the lease of any task has expired.
pub async fn is_any_lost(conn: &mut PgConnection) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM tasks WHERE status = 'running' AND lease_until < now()) AS "any!""#
    )
    .fetch_one(conn)
    .await
}

/// Which open tasks to end outside their worker, without reading their requests.
#[derive(Clone, Copy, Debug)]
pub enum Overdue {
    /// Past their deadline. A worker has `grace` to end its own task first.
    Expired { grace: Duration },
    /// Lost by their workers, with no attempt left.
    Exhausted { attempts_max: i16 },
}

/// An open task to end.
#[derive(Clone, Copy, Debug)]
pub struct Doomed {
    pub id: TaskId,
    pub fence: i64,
    pub account_id: AccountId,
}

/// Locks up to `limit` overdue tasks that no other transaction has locked, except those of some accounts.
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

/// How to end a task, under the fence of its claim.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub id: TaskId,
    pub fence: i64,
    pub outcome: &'a Outcome,
    /// The last attempt, if one was made.
    pub attempt: Option<&'a Attempt>,
    /// The usage that the upstream reported.
    pub usage: &'a [Value],
}

/// The result of an ended task, for the ledger.
#[derive(Debug)]
pub struct Ended {
    pub id: TaskId,
    pub account_id: AccountId,
    /// The amount that was on hold.
    pub held: Cny,
    /// The amount to capture.
    pub cost: Cny,
    pub at: DateTime<Utc>,
}

/// Ends tasks. Tasks missing from the result had already ended or been claimed anew, and are
/// unchanged.
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

/// Notifies waiters in other processes of ended tasks when the transaction commits. A hint.
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
