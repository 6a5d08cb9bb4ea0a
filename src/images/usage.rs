//! What tasks came to, as their account sees it.

use serde::Serialize;

use super::links;
use crate::{
    ids::TaskId,
    image::{AspectRatio, Quality, Resolution},
    money::Cny,
    tasks::{Status, Summary},
};

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
    /// `public_url` is what links start with.
    pub fn new(task: &Summary, key: &str, public_url: &str) -> Self {
        Self {
            id: task.id,
            task_id: task.id,
            created: task.created_at.timestamp(),
            model: task.model.clone(),
            quality: task.quality,
            resolution: task.resolution,
            size: task.ratio,
            status: if task.status == Status::Completed {
                "completed"
            } else {
                "failed"
            },
            cost: task.end.as_ref().map_or(Cny::ZERO, |end| end.cost),
            cost_breakdown: CostBreakdown {
                image_count: task.images().len(),
                image_cost_rmb: task.unit_price,
                image_urls: links(task, public_url),
            },
            api_key: key.to_owned(),
        }
    }
}
