//! Whether the essential loops make progress. A loop that has work but no success for some seconds
//! makes the process not ready.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A loop without a success for this long has stalled.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// A loop that has not tried again for this long is idle, and its last failure no longer counts.
const IDLE_AFTER: Duration = Duration::from_secs(4);

/// The loops that must make progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Accepts tasks.
    Submit,
    /// Settles tasks.
    Settle,
    /// Looks up polled tasks.
    Poll,
    /// Claims queued tasks.
    Claim,
    /// Renews leases.
    Renew,
    /// Requeues lost tasks.
    Rescue,
    /// Ends expired tasks.
    Expire,
    /// Listens for notifications.
    Listen,
}

/// What `/readyz` reports about each loop, in the same order.
const LOOPS: [&str; 8] = [
    "what accepts tasks makes no progress",
    "what settles tasks makes no progress",
    "what looks up tasks makes no progress",
    "what claims tasks makes no progress",
    "what renews leases makes no progress",
    "what looks for lost tasks makes no progress",
    "what ends expired tasks makes no progress",
    "what listens for notifications makes no progress",
];

/// The progress of all loops. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<[Mutex<State>; LOOPS.len()]>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The start of the first attempt since the last success.
    trying_since: Option<Instant>,
    is_at_work: bool,
    last_end: Option<Instant>,
}

/// One attempt of a loop. It counts as a failure unless `succeeded` is called.
#[must_use]
pub struct Attempt {
    progress: Progress,
    which: Loop,
}

impl State {
    fn begin(&mut self, now: Instant) {
        let goes_on = self.ended_lately(now);
        self.trying_since = self.trying_since.filter(|_| goes_on).or(Some(now));
        self.is_at_work = true;
    }

    fn end(&mut self, now: Instant) {
        self.is_at_work = false;
        self.last_end = Some(now);
    }

    fn has_stalled(&self, now: Instant) -> bool {
        let tries = self.is_at_work || self.ended_lately(now);
        let is_long = |since| now.duration_since(since) > STALLED_AFTER;
        tries && self.trying_since.is_some_and(is_long)
    }

    fn ended_lately(&self, now: Instant) -> bool {
        let lately = |end| now.duration_since(end) < IDLE_AFTER;
        self.last_end.is_some_and(lately)
    }
}

impl Progress {
    /// Records that a loop has work and begins an attempt.
    pub fn begin(&self, which: Loop) -> Attempt {
        self.change(which, |state| state.begin(Instant::now()));
        Attempt {
            progress: self.clone(),
            which,
        }
    }

    /// What to report about the first stalled loop, if any.
    pub fn stalled(&self) -> Option<&'static str> {
        let now = Instant::now();
        let stalled = |state: &Mutex<State>| lock(state).has_stalled(now);
        let mut states = self.0.iter().zip(LOOPS);
        states
            .find(|(state, _)| stalled(state))
            .map(|(_, what)| what)
    }

    fn change(&self, which: Loop, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.0.get(which as usize) {
            change(&mut lock(state));
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attempt {
    /// Ends the attempt as a success.
    pub fn succeeded(self) {
        self.progress
            .change(self.which, |state| state.trying_since = None);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.progress
            .change(self.which, |state| state.end(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_or_keeps_failing_has_stalled() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut state = State::default();
        state.begin(began);
        assert!(!state.has_stalled(at(4)));
        assert!(state.has_stalled(at(6)), "it hangs");
        state.trying_since = None;
        state.end(at(6));
        assert!(!state.has_stalled(at(6)), "it has succeeded");

        for seconds in (10..=16).step_by(2) {
            state.begin(at(seconds));
            state.end(at(seconds + 1));
        }
        assert!(state.has_stalled(at(17)), "it fails");
    }

    #[test]
    fn an_idle_loop_has_not_stalled() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut state = State::default();
        state.begin(began);
        state.end(at(3));
        assert!(!state.has_stalled(at(60)));
        state.begin(at(60));
        assert!(!state.has_stalled(at(61)), "a new beginning");
    }

    #[test]
    fn a_success_counts_for_its_own_loop() {
        let progress = Progress::default();
        progress.begin(Loop::Listen).succeeded();
        assert_eq!(progress.stalled(), None);
        let now = Instant::now();
        let long_ago = now.checked_sub(Duration::from_secs(6));
        let _hangs = progress.begin(Loop::Listen);
        progress.change(Loop::Listen, |state| state.trying_since = long_ago);
        assert_eq!(
            progress.stalled(),
            Some("what listens for notifications makes no progress")
        );
    }
}
