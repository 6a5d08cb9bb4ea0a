//! Settles tasks: ends them, captures the price of what was delivered, and releases the rest of their holds.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, query_file_as, types::Json};

use crate::{
    db::Patience,
    ids::{AccountId, TaskId},
    money::Cny,
    tasks::{Attempt, Ending, Failure, Image, Outcome},
};

/// How a task that has ended was settled: `captured` is spent, the rest of the hold is released.
#[derive(Clone, Copy, Debug)]
pub struct Settlement {
    /// The task.
    pub task_id: TaskId,
    /// The account that pays.
    pub account_id: AccountId,
    /// Zero if nothing was delivered.
    pub captured: Cny,
    /// When the task ended.
    pub at: DateTime<Utc>,
}

/// What a settlement needs to know besides the tasks and how they ended.
#[derive(Clone, Copy, Debug)]
pub struct Settling<'a> {
    /// Determines when a month begins, for quotas.
    pub time_zone: &'a str,
    /// Callers that wait in this process are not notified through the database; 0: all are.
    pub process: i32,
    /// How long to wait for locked rows.
    pub patience: Patience,
}

/// Ends tasks, each under the fence of its claim, and settles their holds. Tasks missing from the result had already
/// ended or been claimed anew, and are unchanged.
///
/// An account's month never goes back: a statement that began before midnight may have waited for one that began after
/// it, and must not overwrite what that one spent.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn settle(
    conn: &mut PgConnection,
    endings: &[((TaskId, i64), &Ending)],
    settling: Settling<'_>,
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
    query_file_as!(
        Settlement,
        "src/billing/ledger/settle.sql",
        settling.patience.lock_timeout(),
        settling.time_zone,
        settling.process,
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
