//! Limits on what the references of one task may use together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::config;

/// The bytes and the time left for the references of one task.
#[derive(Debug)]
pub struct FetchBudget {
    /// When the time is up.
    pub(super) deadline: Instant,
    /// The whole time limit, for error messages.
    pub(super) timeout: Duration,
    /// The whole limit in bytes, for error messages.
    pub(super) bytes_max: u64,
    bytes_left: AtomicU64,
}

impl FetchBudget {
    /// Starts the time limit.
    pub(super) fn new(config: &config::References) -> Self {
        let timeout = config.fetch_all_timeout();
        Self {
            deadline: Instant::now() + timeout,
            timeout,
            bytes_max: config.fetched_bytes_max,
            bytes_left: AtomicU64::new(config.fetched_bytes_max),
        }
    }

    /// Takes bytes from the budget. Returns false if too few are left.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let taken = self
            .bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        taken.is_ok()
    }
}
