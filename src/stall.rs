//! Notices when this process itself stood still: stopped by a signal, starved of CPU, or suspended with its
//! machine. What failed meanwhile says nothing of those who were spoken to.

use std::{
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, error::Elapsed, timeout};

const TICK: Duration = Duration::from_millis(200);
/// A tick that comes so late is a stall; a busy runtime is late by less.
const STALL_MIN: Duration = Duration::from_secs(1);
/// After a stall, for what had come in meanwhile to be read.
const CATCH_UP: Duration = Duration::from_secs(1);

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

    /// Gives `work` up after `limit`; where the process stood still meanwhile, not before it has had a moment to
    /// read the answer that may be there.
    pub async fn timeout<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let (began, mut work) = (Instant::now(), pin!(work));
        match timeout(limit, &mut work).await {
            Err(_) if self.since(began) => timeout(CATCH_UP, work).await,
            done => done,
        }
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

    #[tokio::test]
    async fn what_came_in_during_a_stall_still_counts() {
        let (watch, limit) = (StallWatch::default(), TICK);
        let late = watch.timeout(limit, tokio::time::sleep(2 * limit)).await;
        assert!(late.is_err(), "no stall, no more time");

        let answered = watch.timeout(limit, async {
            std::thread::sleep(TICK + STALL_MIN + limit);
            tokio::time::sleep(CATCH_UP / 4).await;
        });
        assert!(answered.await.is_ok());
    }
}
