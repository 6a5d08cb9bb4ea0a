//! Detects that this process itself stalled: stopped by a signal, starved of CPU, or suspended with
//! its machine. Failures during a stall say nothing about the remote side.

use std::{
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, error::Elapsed, timeout};

const TICK: Duration = Duration::from_millis(200);
/// A tick this late is a stall; a busy runtime causes shorter delays.
const STALL_MIN: Duration = Duration::from_secs(1);
/// Time after a stall to read the data that arrived meanwhile.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Ticks, and records when a tick was late.
pub struct StallWatch(Mutex<Ticks>);

struct Ticks {
    latest: Instant,
    /// When the latest stall ended.
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
    /// Ticks. Never returns.
    pub async fn run(&self) {
        loop {
            self.tick(Instant::now());
            tokio::time::sleep(TICK).await;
        }
    }

    /// Whether the process stalled at any time since `began`.
    pub fn since(&self, began: Instant) -> bool {
        // After a stall, other code may run before the watch does.
        self.tick(Instant::now());
        self.lock().stalled.is_some_and(|until| until >= began)
    }

    /// Gives up `work` after `limit`. If the process stalled meanwhile, it first gets a moment to
    /// read an answer that may have arrived.
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
                "this process stalled: failures meanwhile count against no backend"
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
    fn only_work_that_spans_a_stall_is_excused() {
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
    async fn an_answer_that_arrives_during_a_stall_still_counts() {
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
