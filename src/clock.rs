//! The time. Code asks a `Clock`, so that a test can put it forward; leases and money go by the
//! database's clock instead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

/// The system's clock, shifted by what a test has put it forward.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    pub fn now(&self) -> DateTime<Utc> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
        let now = DateTime::<Utc>::from(std::time::SystemTime::now());
        now + TimeDelta::milliseconds(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Puts every copy of this clock forward.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}
