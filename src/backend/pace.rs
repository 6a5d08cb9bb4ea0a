//! How long a route has taken of late, so that nothing is begun that cannot end in time.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Of a task's time, what is left to store and settle what came: what comes later is not delivered.
pub const SETTLE_TIME: Duration = Duration::from_secs(1);
/// So many attempts are remembered.
const REMEMBERED: usize = 32;

/// Of one upstream's model.
pub struct Pace {
    /// A task that has more time left than this is begun whatever is remembered, so that there is always
    /// something new to remember.
    least_max: Duration,
    latest: Mutex<VecDeque<Duration>>,
}

impl Pace {
    /// For tasks that have `deadline` from submit to end.
    pub fn new(deadline: Duration) -> Self {
        Self {
            least_max: deadline.mul_f64(0.9),
            latest: Mutex::default(),
        }
    }

    /// An attempt took so long, and delivered.
    pub fn delivered_in(&self, duration: Duration) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == REMEMBERED {
            latest.pop_front();
        }
        latest.push_back(duration);
    }

    /// An attempt was cut off by its task's deadline after so long: how much longer it would have taken is
    /// not known.
    pub fn cut_off_after(&self, duration: Duration) {
        self.delivered_in(duration.saturating_mul(2).min(self.least_max));
    }

    /// How long it takes, as a rule; `None`: nothing is known.
    pub fn typical(&self) -> Option<Duration> {
        self.quantile(5)
    }

    /// How much time a task must have left to be begun: what was enough for nine of ten, and to settle.
    pub fn least(&self) -> Duration {
        let least = self.quantile(9).map(|took| took + SETTLE_TIME);
        least.unwrap_or_default().min(self.least_max)
    }

    /// The duration that so many of ten attempts did not exceed.
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
    fn nine_of_ten_say_how_much_time_is_needed() {
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
            "what was long ago is forgotten"
        );
    }

    #[test]
    fn what_is_cut_off_makes_it_careful_but_never_stops_it() {
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
