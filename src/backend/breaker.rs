//! Leaves a backend in peace that keeps failing: after some failures in a row it rests, then one request
//! is let through, and its end decides.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{config, failure::Class};

/// Of one backend.
pub struct Breaker {
    name: String,
    settings: config::Routing,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// Nobody is let through before.
    rests_until: Option<Instant>,
}

impl Breaker {
    pub fn new(name: &str, settings: config::Routing) -> Self {
        Self {
            name: name.to_owned(),
            settings,
            state: Mutex::default(),
        }
    }

    /// Whether nobody is let through now.
    pub fn is_resting(&self) -> bool {
        self.is_resting_at(Instant::now())
    }

    /// Lets a request through, or does not. After a rest the next one has to wait for another rest,
    /// unless this one ends well.
    pub fn admit(&self) -> bool {
        self.admit_at(Instant::now())
    }

    /// How a request ended; `None`: well.
    pub fn note(&self, class: Option<Class>) {
        self.note_at(Instant::now(), class);
    }

    fn is_resting_at(&self, now: Instant) -> bool {
        self.lock().rests_until.is_some_and(|until| now < until)
    }

    fn admit_at(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.rests_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.rests_until = Some(now + self.settings.rest());
                true
            }
        }
    }

    fn note_at(&self, now: Instant, class: Option<Class>) {
        let mut state = self.lock();
        let failures_max = match class {
            // It works, whatever it thinks of the request.
            None | Some(Class::Refused | Class::Invalid) => {
                if state.rests_until.is_some() {
                    tracing::info!(backend = self.name, "a backend works again");
                }
                *state = State::default();
                return;
            }
            // A wait that it asks for concerns the task; the rest says nothing of the backend.
            Some(Class::RateLimited | Class::Lost | Class::Internal) => return,
            Some(Class::Credentials) => 1,
            Some(Class::Unreachable | Class::Failed | Class::Silent | Class::NoImage) => {
                self.settings.failures_max
            }
        };
        state.failures = state.failures.saturating_add(1);
        // One that was tried after a rest needs no others to fail beside it.
        if state.failures < failures_max && state.rests_until.is_none() {
            return;
        }
        let rest = self.settings.rest();
        if state.rests_until.replace(now + rest).is_none() {
            let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(backend = self.name, rest_ms, class = ?class, "a backend keeps failing and is left out for a while");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REST: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        let settings = toml::from_str(
            "failures_max = 2\nrest_ms = 1000\nretry_wait_ms = 1\nretry_wait_max_ms = 1",
        );
        Breaker::new("it", settings.unwrap())
    }

    #[test]
    fn rests_after_failures_in_a_row_and_tries_one_request_after_that() {
        let (breaker, start) = (breaker(), Instant::now());
        breaker.note_at(start, Some(Class::Failed));
        breaker.note_at(start, None);
        breaker.note_at(start, Some(Class::Silent));
        assert!(breaker.admit_at(start), "not in a row");
        breaker.note_at(start, Some(Class::Unreachable));
        assert!(breaker.is_resting_at(start) && !breaker.admit_at(start));

        let later = start + REST;
        assert!(!breaker.is_resting_at(later));
        assert!(breaker.admit_at(later), "the one that is tried");
        assert!(!breaker.admit_at(later), "not another");
        breaker.note_at(later, Some(Class::Failed));
        assert!(breaker.is_resting_at(later));

        // One that never says how it ended keeps nobody out for longer than a rest.
        assert!(breaker.admit_at(later + REST));
        assert!(breaker.admit_at(later + 2 * REST));
        breaker.note_at(later + 2 * REST, None);
        assert!(breaker.admit_at(later + 2 * REST) && breaker.admit_at(later + 2 * REST));
    }

    #[test]
    fn a_bad_key_counts_at_once_and_the_clients_faults_do_not() {
        let (breaker, now) = (breaker(), Instant::now());
        for class in [Class::Refused, Class::Invalid, Class::RateLimited] {
            breaker.note_at(now, Some(class));
            breaker.note_at(now, Some(class));
            assert!(breaker.admit_at(now), "{class:?}");
        }
        breaker.note_at(now, Some(Class::Credentials));
        assert!(!breaker.admit_at(now));
    }
}
