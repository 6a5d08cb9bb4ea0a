//! Ends tasks, under the fence of their latest claim.

use std::time::Duration;

use serde_json::Value;
use sqlx::{PgConnection, query_as, types::Json};

use super::interval;
use crate::{
    billing::ledger::Settlement,
    ids::{AccountId, TaskId},
    money::Cny,
    tasks::{Attempt, Ending, Failure, Image, Outcome},
};

/// Which open tasks to end outside their worker, without reading their requests.
#[derive(Clone, Copy, Debug)]
pub enum Overdue {
    /// Past their deadline. A worker has `grace` to end its own task first.
    Expired {
        /// From the deadline on.
        grace: Duration,
    },
    /// Lost by their workers, with no attempt left.
    Exhausted {
        /// How often a task may be begun.
        attempts_max: i16,
    },
}

/// An open task that is overdue.
#[derive(Clone, Copy, Debug)]
pub struct OverdueTask {
    /// Identifies it.
    pub id: TaskId,
    /// The fence of its latest claim, under which it is ended.
    pub fence: i64,
    /// The account that pays it.
    pub account_id: AccountId,
}

/// Locks up to `limit` overdue tasks that no other transaction has locked, except those of some accounts.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn overdue(
    conn: &mut PgConnection,
    which: Overdue,
    except: &[AccountId],
    limit: i64,
) -> sqlx::Result<Vec<OverdueTask>> {
    match which {
        Overdue::Expired { grace } => {
            query_as!(
                OverdueTask,
                "SELECT id, fence, account_id FROM tasks
                 WHERE status IN ('queued', 'running') AND deadline_at <= now()
                     AND (status = 'queued' OR lease_until < now() OR deadline_at <= now() - $3::interval)
                     AND account_id <> ALL($1)
                 ORDER BY deadline_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except as _,
                limit,
                interval(grace),
            )
            .fetch_all(conn)
            .await
        }
        Overdue::Exhausted { attempts_max } => {
            query_as!(
                OverdueTask,
                "SELECT id, fence, account_id FROM tasks
                 WHERE status = 'running' AND lease_until < now() AND attempts >= $3
                     AND account_id <> ALL($1)
                 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except as _,
                limit,
                attempts_max,
            )
            .fetch_all(conn)
            .await
        }
    }
}

/// Ends tasks, each under the fence of its claim. Tasks missing from the result had already ended or been claimed anew,
/// and are unchanged.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn end(
    conn: &mut PgConnection,
    endings: &[((TaskId, i64), &Ending)],
) -> sqlx::Result<Vec<Settlement>> {
    let (ids, fences): (Vec<_>, Vec<_>) = endings.iter().map(|(claim, _)| *claim).unzip();
    let endings = || endings.iter().map(|(_, ending)| *ending);
    let (images, failures): (Vec<_>, Vec<_>) = endings()
        .map(|ending| match &ending.outcome {
            Outcome::Completed(images) => (Some(Json(images)), None),
            Outcome::Failed(failure) => (None, Some(Json(failure))),
        })
        .unzip();
    let attempts: Vec<_> = endings().map(|e| e.attempt.as_ref().map(Json)).collect();
    let usages: Vec<_> = endings()
        .map(|e| (!e.usage.is_empty()).then_some(Json(e.usage.as_slice())))
        .collect();
    query_as!(
        Settlement,
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
           RETURNING t.id AS task_id, t.account_id, t.unit_price * t.n AS "held!: Cny",
               t.cost AS "captured!: Cny", t.ended_at AS "at!""#,
        &ids as _,
        &fences,
        &images as &[Option<Json<&Vec<Image>>>],
        &failures as &[Option<Json<&Failure>>],
        &attempts as &[Option<Json<&Attempt>>],
        &usages as &[Option<Json<&[Value]>>],
    )
    .fetch_all(conn)
    .await
}
