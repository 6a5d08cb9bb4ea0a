//! Usage records: the ended tasks of an account and their cost.

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
    /// The same as `task_id`.
    pub id: TaskId,
    /// Identifies the task.
    pub task_id: TaskId,
    /// When the request was accepted.
    pub created: i64,
    /// The name in the request.
    pub model: String,
    /// Determined the price.
    pub quality: Quality,
    /// Determined the size in pixels.
    pub resolution: Resolution,
    /// The aspect ratio, under its name in the API.
    pub size: AspectRatio,
    /// `completed` or `failed`.
    pub status: &'static str,
    /// The captured amount, in CNY; zero if the task failed.
    pub cost: Cny,
    /// How the cost comes about.
    pub cost_breakdown: CostBreakdown,
    /// The name of the API key, not the key itself.
    pub api_key: String,
}

/// The images of a record and their price.
#[derive(Debug, Serialize)]
pub struct CostBreakdown {
    /// How many images were delivered.
    pub image_count: usize,
    /// The price of one image.
    pub image_cost_rmb: Cny,
    /// The links to the images, in order; each is a credential.
    pub image_urls: Vec<String>,
}

impl Record {
    /// The record of an ended task. `public_url` is the prefix of its links; `key` is the API key's name.
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
                image_urls: links::results(task, public_url),
            },
            api_key: key.to_owned(),
        }
    }
}
