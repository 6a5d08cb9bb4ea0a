//! How long a route's latest attempts took, so that no attempt starts that cannot end in time.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The part of a task's time reserved for storing and settling: an image that arrives later is not delivered.
pub const SETTLE_TIME: Duration = Duration::from_secs(1);
/// The number of attempts that are remembered.
const REMEMBERED: usize = 32;

/// The durations of the latest attempts with one model of an upstream.
pub struct Pace {
    /// A task with more time left than this always starts, whatever the durations, so that new durations keep
    /// coming in.
    least_max: Duration,
    latest: Mutex<VecDeque<Duration>>,
}

impl Pace {
    /// For tasks that have `deadline` from submission to end.
    pub fn new(deadline: Duration) -> Self {
        Self {
            least_max: deadline.mul_f64(0.9),
            latest: Mutex::default(),
        }
    }

    /// Records the duration of an attempt that delivered.
    pub fn delivered_in(&self, duration: Duration) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == REMEMBERED {
            latest.pop_front();
        }
        latest.push_back(duration);
    }

    /// Records that a task's deadline cut an attempt off after `duration`. It counts as twice as long, because
    /// the full duration is unknown.
    pub fn cut_off_after(&self, duration: Duration) {
        self.delivered_in(duration.saturating_mul(2).min(self.least_max));
    }

    /// The median duration; `None` if nothing is known.
    pub fn typical(&self) -> Option<Duration> {
        self.quantile(5)
    }

    /// The least time a task must have left to start: what was enough for nine of ten attempts, plus settling.
    pub fn least(&self) -> Duration {
        let least = self.quantile(9).map(|took| took + SETTLE_TIME);
        least.unwrap_or_default().min(self.least_max)
    }

    /// The duration that `of_ten` of ten attempts did not exceed.
    fn quantile(&self, of_ten: usize) -> Option<Duration> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<Duration> = latest.iter().copied().collect();
        drop(latest);
        sorted.sort_unstable();
        sorted
            .get((sorted.len() * of_ten).div_ceil(10).saturating_sub(1))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn nine_of_ten_durations_set_the_time_needed() {
        let pace = Pace::new(100 * S);
        assert_eq!((pace.typical(), pace.least()), (None, Duration::ZERO));
        pace.delivered_in(4 * S);
        assert_eq!(
            (pace.typical(), pace.least()),
            (Some(4 * S), 4 * S + SETTLE_TIME)
        );
        for seconds in 1..=10 {
            pace.delivered_in(seconds * S);
        }
        assert_eq!(
            (pace.typical(), pace.least()),
            (Some(5 * S), 9 * S + SETTLE_TIME)
        );
        for _ in 0..REMEMBERED {
            pace.delivered_in(S);
        }
        assert_eq!(
            pace.least(),
            S + SETTLE_TIME,
            "old durations are no longer counted"
        );
    }

    #[test]
    fn cut_off_attempts_raise_the_time_needed_up_to_a_limit() {
        let pace = Pace::new(100 * S);
        for _ in 0..REMEMBERED {
            pace.delivered_in(4 * S);
        }
        for _ in 0..4 {
            pace.cut_off_after(5 * S);
        }
        assert_eq!(pace.least(), 10 * S + SETTLE_TIME);
        for _ in 0..REMEMBERED {
            pace.cut_off_after(95 * S);
        }
        assert_eq!(pace.least(), 90 * S);
    }
}
