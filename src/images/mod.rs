//! Generating images for paying callers: the only place that joins accounts, tasks, billing,
//! storage and backends. `submit` accepts a task, `run` generates it, `settle` ends it.

pub mod admission;
mod adopt;
pub mod dispatch;
pub mod expire;
pub mod generate;
mod inputs;
pub mod intake;
pub mod links;
pub mod request;
mod retry;
pub mod run;
pub mod settle;
mod sink;
pub mod stored_inputs;
pub mod submit;
pub mod sweep;
pub mod usage;

use std::{ops::Deref, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use self::{admission::Admission, settle::Settler, submit::Submitter};
use crate::{
    app::App, billing::ledger::Terms, config, db::DatabaseTime, image::Quality, money::Cny,
    tasks::Claim,
};

/// The use cases of generating images, over what all use cases share. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    /// What all use cases share.
    pub app: App,
    /// Decides which requests may wait.
    pub admission: Arc<Admission>,
    submitter: Submitter,
    /// Ends tasks.
    pub settler: Settler,
}

impl Images {
    /// Starts the loops that accept and settle tasks. The receiver is for the worker.
    pub fn start(app: App) -> (Self, mpsc::UnboundedReceiver<Claimed>) {
        let (claimed, to_run) = mpsc::unbounded_channel();
        let time_zone = &app.config.billing.time_zone;
        let submitter = submit::start(submit::SubmitBatch {
            pool: app.pool.clone(),
            waiters: app.waiters.clone(),
            progress: app.progress.clone(),
            claimed,
            terms: Terms {
                lease: app.config.tasks.lease(),
                deadline: app.config.tasks.deadline(),
                time_zone: time_zone.clone(),
            },
            time: DatabaseTime::default(),
        });
        let settler = settle::start(settle::SettleBatch {
            pool: app.pool.clone(),
            waiters: app.waiters.clone(),
            progress: app.progress.clone(),
            time_zone: time_zone.clone(),
        });
        let admission = Arc::new(Admission::new(app.config.tasks.running_max));
        let images = Self {
            app,
            admission,
            submitter,
            settler,
        };
        (images, to_run)
    }
}

impl Deref for Images {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// A task that this process has claimed, with the slot it occupies.
#[derive(Debug)]
pub struct Claimed {
    /// The task, and how to generate it.
    pub claim: Claim,
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
