//! What tasks came to, as their account sees it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::{
    ids::{AccountId, TaskId},
    image::{AspectRatio, Quality, Resolution},
    money::Cny,
    tasks::{Status, Task, store},
};

/// An ended task and the name of the key that asked for it.
pub type Row = (Task, String);

/// One ended task as a usage record. Times are Unix seconds.
#[derive(Debug, Serialize)]
pub struct Record {
    pub id: TaskId,
    pub task_id: TaskId,
    pub created: i64,
    pub model: String,
    pub quality: Quality,
    pub resolution: Resolution,
    pub size: AspectRatio,
    pub status: &'static str,
    pub cost: Cny,
    pub cost_breakdown: CostBreakdown,
    pub api_key: String,
}

#[derive(Debug, Serialize)]
pub struct CostBreakdown {
    pub image_count: usize,
    pub image_cost_rmb: Cny,
    pub image_urls: Vec<String>,
}

impl Record {
    pub fn new(task: &Task, key: &str, image_urls: Vec<String>) -> Self {
        let request = &task.request;
        Self {
            id: task.id,
            task_id: task.id,
            created: task.created_at.timestamp(),
            model: request.model.clone(),
            quality: request.quality,
            resolution: request.resolution,
            size: request.ratio,
            status: if task.status == Status::Completed { "completed" } else { "failed" },
            cost: task.end.as_ref().map_or(Cny::ZERO, |end| end.cost),
            cost_breakdown: CostBreakdown {
                image_count: task.images().len(),
                image_cost_rmb: task.unit_price,
                image_urls,
            },
            api_key: key.to_owned(),
        }
    }
}

/// A page of an account's ended tasks, newest first.
pub async fn page(
    conn: &mut PgConnection,
    account_id: AccountId,
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    store::ended(conn, account_id, (None, None), after, limit).await
}

/// As [`page`], of tasks that were accepted within a time.
pub async fn between(
    conn: &mut PgConnection,
    account_id: AccountId,
    time: (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    store::ended(conn, account_id, time, after, limit).await
}
