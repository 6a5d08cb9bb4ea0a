//! Generating images for paying callers: the only place that joins accounts, tasks, billing,
//! storage and backends. `submit` accepts a task, `run` generates it, `settle` ends it.

pub mod admission;
mod adopt;
pub mod dispatch;
pub mod expire;
mod inputs;
pub mod intake;
mod retry;
pub mod run;
pub mod settle;
mod sink;
pub mod stored_inputs;
pub mod submit;
pub mod sweep;
pub mod usage;

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    config,
    image::Quality,
    money::Cny,
    tasks::{Assignment, Image, Summary, Task},
};

/// A task that this process has claimed, with the slot it occupies.
#[derive(Debug)]
pub struct Claimed {
    pub task: Task,
    /// The route that generates it.
    pub assignment: Assignment,
    /// Frees the slot when dropped.
    pub slot: OwnedSemaphorePermit,
}

/// The price of one image of this quality.
pub fn unit_price(model: &config::Model, quality: Quality) -> Cny {
    match quality {
        Quality::Low => model.price_low,
        Quality::Medium => model.price_medium,
        Quality::High => model.price_high,
    }
}

/// The links of a task's images. `public_url` is their prefix.
pub fn links(task: &Summary, public_url: &str) -> Vec<String> {
    let (model, file_id) = (&task.model, task.file_id);
    let date = task.created_at.format("%Y%m%d");
    let link = |(index, image): (usize, &Image)| {
        let (seq, extension) = (index + 1, image.format.extension());
        format!("{public_url}/v1/images/files/{model}/{date}/{file_id}-{seq}.{extension}")
    };
    task.images().iter().enumerate().map(link).collect()
}
