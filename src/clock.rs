//! The time. Code uses a `Clock`, so that a test can advance it; leases and money use the
//! database's clock instead.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

/// The system's clock, plus the time by which a test has advanced it.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    /// The current time.
    pub fn now(&self) -> DateTime<Utc> {
        #[expect(clippy::disallowed_methods, reason = "the only place that reads it")]
        let now = DateTime::<Utc>::from(std::time::SystemTime::now());
        now + TimeDelta::milliseconds(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Advances this clock and all its clones.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// The wait times a random factor, so that many who wait for the same do not all try again together.
pub fn jittered(wait: Duration, factor: RangeInclusive<f64>) -> Duration {
    wait.mul_f64(rand::random_range(factor))
}
