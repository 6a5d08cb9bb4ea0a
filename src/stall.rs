//! Notices when this process itself stood still: stopped by a signal, starved of CPU, or suspended with its
//! machine. What failed meanwhile says nothing of those who were spoken to.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const TICK: Duration = Duration::from_millis(200);
/// A tick that comes so late is a stall; a busy runtime is late by less.
const STALL_MIN: Duration = Duration::from_secs(1);

/// Ticks, and remembers when a tick was late.
pub struct StallWatch(Mutex<Ticks>);

struct Ticks {
    latest: Instant,
    /// When the latest stall was over.
    stalled: Option<Instant>,
}

impl Default for StallWatch {
    fn default() -> Self {
        let latest = Instant::now();
        Self(Mutex::new(Ticks {
            latest,
            stalled: None,
        }))
    }
}

impl StallWatch {
    /// Watches for ever.
    pub async fn run(&self) {
        loop {
            self.tick(Instant::now());
            tokio::time::sleep(TICK).await;
        }
    }

    /// Whether the process stood still at some time from `began` until now.
    pub fn since(&self, began: Instant) -> bool {
        // The first to run after a stall may not be the watch.
        self.tick(Instant::now());
        self.lock().stalled.is_some_and(|until| until >= began)
    }

    fn tick(&self, now: Instant) {
        let mut ticks = self.lock();
        let gap = now.saturating_duration_since(ticks.latest);
        ticks.latest = now;
        if gap > TICK + STALL_MIN {
            ticks.stalled = Some(now);
            let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                gap_ms,
                "this process stood still: what failed meanwhile counts against no backend"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ticks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_spans_a_stall_is_excused() {
        let watch = StallWatch::default();
        let start = watch.lock().latest;
        watch.tick(start + TICK);
        let began = start + TICK;
        assert_eq!(watch.lock().stalled, None);
        watch.tick(began + TICK + STALL_MIN / 2);
        assert_eq!(watch.lock().stalled, None, "late, but no stall");
        let over = watch.lock().latest + TICK + 2 * STALL_MIN;
        watch.tick(over);
        assert_eq!(watch.lock().stalled, Some(over));
        assert!(over >= began && over < over + TICK);
    }
}
