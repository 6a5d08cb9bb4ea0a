//! Whether the essential loops make progress. A loop that has work but no success for some seconds
//! makes the process not ready.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A loop without a success for this long has stalled.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// A loop that has not tried again for this long is idle, and its last failure no longer counts. Longer than the
/// longest pause of a periodic loop.
const IDLE_AFTER: Duration = Duration::from_secs(4);
/// The same for a loop that works on request. A gateway that is not ready gets no requests, so nothing but time can
/// show that it works again.
const UNASKED_AFTER: Duration = Duration::from_secs(2);

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

/// All loops, in the order of their states.
const LOOPS: [Loop; 8] = [
    Loop::Submit,
    Loop::Settle,
    Loop::Poll,
    Loop::Claim,
    Loop::Renew,
    Loop::Rescue,
    Loop::Expire,
    Loop::Listen,
];

impl Loop {
    /// What `/readyz` reports when the loop has stalled.
    fn report(self) -> &'static str {
        match self {
            Self::Submit => "what accepts tasks makes no progress",
            Self::Settle => "what settles tasks makes no progress",
            Self::Poll => "what looks up tasks makes no progress",
            Self::Claim => "what claims tasks makes no progress",
            Self::Renew => "what renews leases makes no progress",
            Self::Rescue => "what looks for lost tasks makes no progress",
            Self::Expire => "what ends expired tasks makes no progress",
            Self::Listen => "what listens for notifications makes no progress",
        }
    }

    fn idle_after(self) -> Duration {
        match self {
            Self::Submit | Self::Poll => UNASKED_AFTER,
            _ => IDLE_AFTER,
        }
    }
}

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
    fn begin(&mut self, now: Instant, idle_after: Duration) {
        let goes_on = self.ended_lately(now, idle_after);
        self.trying_since = self.trying_since.filter(|_| goes_on).or(Some(now));
        self.is_at_work = true;
    }

    fn end(&mut self, now: Instant) {
        self.is_at_work = false;
        self.last_end = Some(now);
    }

    fn has_stalled(&self, now: Instant, idle_after: Duration) -> bool {
        let tries = self.is_at_work || self.ended_lately(now, idle_after);
        let is_long = |since| now.duration_since(since) > STALLED_AFTER;
        tries && self.trying_since.is_some_and(is_long)
    }

    fn ended_lately(&self, now: Instant, idle_after: Duration) -> bool {
        let lately = |end| now.duration_since(end) < idle_after;
        self.last_end.is_some_and(lately)
    }
}

impl Progress {
    /// Records that a loop has work and begins an attempt.
    pub fn begin(&self, which: Loop) -> Attempt {
        let idle_after = which.idle_after();
        self.change(which, |state| state.begin(Instant::now(), idle_after));
        Attempt {
            progress: self.clone(),
            which,
        }
    }

    /// What to report about the first stalled loop, if any.
    pub fn stalled(&self) -> Option<&'static str> {
        let now = Instant::now();
        let mut states = self.0.iter().zip(LOOPS);
        let stalled =
            states.find(|(state, which)| lock(state).has_stalled(now, which.idle_after()));
        stalled.map(|(_, which)| which.report())
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
        state.begin(began, IDLE_AFTER);
        assert!(!state.has_stalled(at(4), IDLE_AFTER));
        assert!(state.has_stalled(at(6), IDLE_AFTER), "it hangs");
        state.trying_since = None;
        state.end(at(6));
        assert!(!state.has_stalled(at(6), IDLE_AFTER), "it has succeeded");

        for seconds in (10..=16).step_by(2) {
            state.begin(at(seconds), IDLE_AFTER);
            state.end(at(seconds + 1));
        }
        assert!(state.has_stalled(at(17), IDLE_AFTER), "it fails");
    }

    #[test]
    fn an_idle_loop_has_not_stalled() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut state = State::default();
        state.begin(began, IDLE_AFTER);
        state.end(at(3));
        assert!(!state.has_stalled(at(60), IDLE_AFTER));
        state.begin(at(60), IDLE_AFTER);
        assert!(!state.has_stalled(at(61), IDLE_AFTER), "a new beginning");
        state.end(at(66));
        assert!(state.has_stalled(at(69), IDLE_AFTER), "it may pause");
        assert!(!state.has_stalled(at(69), UNASKED_AFTER), "no work");
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
