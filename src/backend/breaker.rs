//! The circuit breaker of one backend: it opens when the backend keeps failing and closes when a probe succeeds.
//! Only failures that no request can cause open it on their own. Failures that a request may cause must come
//! from several accounts, so that one account's requests cannot take a backend away from the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{config, failure::Class, ids::AccountId};

/// The circuit breaker of one backend.
pub struct Breaker {
    name: String,
    settings: config::Routing,
    state: Mutex<State>,
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Every call is let through.
    Closed,
    /// No call is let through, or only the next one, as a probe.
    Open,
    /// A probe is running, and its result decides.
    Probing,
}

/// Permission for one call. Dropping it without a record, for example because no call was made, changes
/// nothing: a probe is given back.
#[must_use]
pub struct Permit {
    breaker: Arc<Breaker>,
    account: AccountId,
    /// The probe's number if the call is a probe.
    probe: Option<u64>,
}

#[derive(Default)]
struct State {
    streak: FailureStreak,
    /// Set while the circuit is open: no call is let through before this time.
    open_until: Option<Instant>,
    /// The number of the running probe.
    probe: Option<u64>,
    probes: u64,
}

/// The failures since the last success.
#[derive(Default)]
struct FailureStreak {
    /// Failures that no request can cause.
    unreachable: u32,
    by_account: HashMap<AccountId, u32>,
}

impl Circuit {
    /// The name that `/readyz?verbose` reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

impl Breaker {
    /// A closed circuit for the backend `name`.
    pub fn new(name: &str, settings: config::Routing) -> Self {
        Self {
            name: name.to_owned(),
            settings,
            state: Mutex::default(),
        }
    }

    /// Asks for permission to make a call for an account. While the circuit is open, one call at a time is let
    /// through as a probe; a second one if the first takes longer than the circuit stays open.
    pub fn try_acquire(self: &Arc<Self>, account: AccountId) -> Option<Permit> {
        self.try_acquire_at(Instant::now(), account)
    }

    /// How many calls are let through now; `None` means any number. Acquires nothing.
    pub fn capacity(&self) -> Option<u32> {
        self.probe_due().map(|wait| u32::from(wait.is_zero()))
    }

    /// How long until the next probe may start; `None` if the circuit is closed.
    pub fn probe_due(&self) -> Option<Duration> {
        let until = self.lock().open_until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// The current state.
    pub fn circuit(&self) -> Circuit {
        let state = self.lock();
        match (state.open_until, state.probe) {
            (None, _) => Circuit::Closed,
            (Some(_), None) => Circuit::Open,
            (Some(_), Some(_)) => Circuit::Probing,
        }
    }

    fn try_acquire_at(self: &Arc<Self>, now: Instant, account: AccountId) -> Option<Permit> {
        let mut state = self.lock();
        let probe = match state.open_until {
            None => None,
            Some(until) if now < until => return None,
            Some(_) => {
                state.probes += 1;
                state.probe = Some(state.probes);
                state.open_until = Some(now + self.settings.open());
                state.probe
            }
        };
        Some(Permit {
            breaker: Arc::clone(self),
            account,
            probe,
        })
    }

    fn record_at(&self, now: Instant, permit: &Permit, class: Option<Class>) {
        let mut state = self.lock();
        let is_open = state.open_until.is_some();
        let is_probe = permit.probe.is_some() && permit.probe == state.probe;
        match class {
            // The backend works, whatever its answer to the request.
            None | Some(Class::Refused | Class::Invalid) => return self.close(&mut state),
            // A probe answered without an image shows that it works too: the request may be the reason.
            Some(Class::NoImage) if is_probe => return self.close(&mut state),
            // These say nothing about the backend.
            Some(Class::Lost | Class::Internal) => return,
            // A requested wait concerns the task only; but after a rate-limited probe, the next probe waits too.
            Some(Class::RateLimited) if !is_probe => return,
            // Calls that started before the circuit opened add no information.
            Some(_) if is_open && !is_probe => return,
            Some(Class::Unreachable) => {
                state.streak.unreachable = state.streak.unreachable.saturating_add(1);
            }
            Some(Class::Failed | Class::OutcomeUnknown | Class::NoImage) => {
                let failures = state.streak.by_account.entry(permit.account).or_default();
                *failures = failures.saturating_add(1);
            }
            Some(Class::Credentials | Class::RateLimited) => {}
        }
        let opens =
            class == Some(Class::Credentials) || state.streak.opens(self.settings.failures_max);
        if is_probe || opens {
            state.streak = FailureStreak::default();
            state.probe = None;
            let open_for = self.settings.open();
            if state.open_until.replace(now + open_for).is_none() {
                let open_ms = u64::try_from(open_for.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    backend = self.name,
                    open_ms,
                    class = ?class,
                    "circuit opened: the backend keeps failing"
                );
            }
        }
    }

    fn close(&self, state: &mut State) {
        if state.open_until.is_some() {
            tracing::info!(
                backend = self.name,
                "circuit closed: the backend works again"
            );
        }
        state.streak = FailureStreak::default();
        state.open_until = None;
        state.probe = None;
    }

    fn release_probe(&self, now: Instant, probe: u64) {
        let mut state = self.lock();
        if state.probe == Some(probe) {
            state.probe = None;
            state.open_until = Some(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Records how the call ended; `None` means success.
    pub fn record(self, class: Option<Class>) {
        self.breaker.record_at(Instant::now(), &self, class);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // If a record has already decided, this is no longer the running probe.
        if let Some(probe) = self.probe {
            self.breaker.release_probe(Instant::now(), probe);
        }
    }
}

impl FailureStreak {
    /// Whether these failures open the circuit. Of the failures that a request may cause, one account counts
    /// for at most half of `failures_max`, and never for all of them.
    fn opens(&self, failures_max: u32) -> bool {
        let share = failures_max.div_ceil(2);
        let counted = self.by_account.values().map(|count| *count.min(&share));
        let failures = counted.fold(self.unreachable, u32::saturating_add);
        let is_shared = self.unreachable > 0 || self.by_account.len() > 1;
        is_shared && failures >= failures_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    const OPEN_FOR: Duration = Duration::from_secs(1);

    fn breaker(failures_max: u32) -> Arc<Breaker> {
        let settings = format!(
            "failures_max = {failures_max}\nopen_ms = 1000\nretry_wait_ms = 1\nretry_wait_max_ms = 1\nsync_wait_ms = 1"
        );
        Arc::new(Breaker::new("it", toml::from_str(&settings).unwrap()))
    }

    impl Breaker {
        fn end_at(self: &Arc<Self>, now: Instant, account: AccountId, class: Option<Class>) {
            let permit = self.try_acquire_at(now, account).unwrap();
            self.record_at(now, &permit, class);
            std::mem::forget(permit);
        }

        fn lets_through_at(self: &Arc<Self>, now: Instant) -> bool {
            self.try_acquire_at(now, row_id()).is_some()
        }
    }

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_probe_through_after_that() {
        let (breaker, start) = (breaker(2), Instant::now());
        let [one, other] = [row_id(), row_id()];
        breaker.end_at(start, one, Some(Class::Failed));
        breaker.end_at(start, one, None);
        breaker.end_at(start, other, Some(Class::OutcomeUnknown));
        assert_eq!(breaker.circuit(), Circuit::Closed, "not in a row");
        breaker.end_at(start, one, Some(Class::Unreachable));
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(!breaker.lets_through_at(start));

        let later = start + OPEN_FOR;
        let probe = breaker.try_acquire_at(later, one).unwrap();
        assert_eq!(breaker.circuit(), Circuit::Probing);
        assert!(!breaker.lets_through_at(later), "one at a time");
        breaker.record_at(later, &probe, Some(Class::Failed));
        drop(probe);
        assert!(!breaker.lets_through_at(later), "it failed again");

        let later = later + OPEN_FOR;
        let slow = breaker.try_acquire_at(later, one).unwrap();
        let second = breaker.try_acquire_at(later + OPEN_FOR, other).unwrap();
        breaker.record_at(later + OPEN_FOR, &slow, Some(Class::Failed));
        assert_eq!(breaker.circuit(), Circuit::Probing, "the second decides");
        breaker.record_at(later + OPEN_FOR, &second, None);
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn a_probe_without_a_call_is_given_back() {
        let (breaker, start) = (breaker(1), Instant::now() - 2 * OPEN_FOR);
        breaker.end_at(start, row_id(), Some(Class::Unreachable));
        for _ in 0..3 {
            let probe = breaker.try_acquire(row_id());
            assert_eq!(breaker.capacity(), Some(0), "it is taken");
            drop(probe.unwrap());
            assert_eq!(breaker.capacity(), Some(1));
        }
        breaker
            .try_acquire(row_id())
            .unwrap()
            .record(Some(Class::Internal));
        assert_eq!(breaker.capacity(), Some(1), "our failure says nothing");
        breaker
            .try_acquire(row_id())
            .unwrap()
            .record(Some(Class::RateLimited));
        assert_eq!(breaker.capacity(), Some(0), "the next probe waits");
    }

    #[test]
    fn one_account_alone_never_opens_a_circuit() {
        let (breaker, now) = (breaker(4), Instant::now());
        let [one, other, third] = [row_id(), row_id(), row_id()];
        for class in [Class::Failed, Class::OutcomeUnknown, Class::NoImage] {
            for _ in 0..10 {
                breaker.end_at(now, one, Some(class));
            }
        }
        breaker.end_at(now, other, Some(Class::NoImage));
        assert_eq!(breaker.circuit(), Circuit::Closed, "three of four");
        breaker.end_at(now, third, Some(Class::Failed));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn two_accounts_must_fail_even_if_failures_max_is_one() {
        let (breaker, now) = (breaker(1), Instant::now());
        let one = row_id();
        breaker.end_at(now, one, Some(Class::Failed));
        breaker.end_at(now, one, Some(Class::Failed));
        assert_eq!(breaker.circuit(), Circuit::Closed);
        breaker.end_at(now, row_id(), Some(Class::Failed));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn calls_from_before_the_circuit_opened_do_not_keep_it_open() {
        let (breaker, start) = (breaker(1), Instant::now());
        let before = breaker.try_acquire_at(start, row_id()).unwrap();
        breaker.end_at(start, row_id(), Some(Class::Unreachable));
        let later = start + OPEN_FOR;
        breaker.record_at(later, &before, Some(Class::Unreachable));
        assert!(breaker.lets_through_at(later));
    }

    #[test]
    fn a_bad_key_opens_the_circuit_at_once_and_client_errors_never_do() {
        let (breaker, now) = (breaker(2), Instant::now());
        for class in [Class::Refused, Class::Invalid, Class::RateLimited] {
            breaker.end_at(now, row_id(), Some(class));
            breaker.end_at(now, row_id(), Some(class));
            assert_eq!(breaker.circuit(), Circuit::Closed, "{class:?}");
        }
        breaker.end_at(now, row_id(), Some(Class::Credentials));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }
}
