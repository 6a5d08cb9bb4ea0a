//! What follows from a failed attempt: what the client is told, and whether and when the task is
//! retried. The only place that decides this, for every backend alike.

use std::{io, time::Duration};

use crate::{
    backend::{
        Ask, BackendError,
        catalog::{Model, Requirements},
    },
    clock::jittered,
    config::Routing,
    failure::Class,
    tasks::{Assignment, Failure, FailureKind},
};

/// What may be retried after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RetryPolicy {
    /// Nothing: a retry would fail again or be paid for twice.
    None,
    /// Another route, but not this one.
    Elsewhere,
    /// Another route, or this one if there is no other.
    Again,
    /// Like `Again`, but once per task only.
    Once,
}

fn retry_policy(error: &BackendError) -> RetryPolicy {
    // The upstream never got the whole request. An object missing from storage stays missing.
    if let BackendError::Input(source) = error
        && source.kind() != io::ErrorKind::NotFound
    {
        return RetryPolicy::Again;
    }
    match error.class() {
        Class::Refused | Class::Invalid | Class::OutcomeUnknown | Class::Internal => {
            RetryPolicy::None
        }
        Class::Credentials => RetryPolicy::Elsewhere,
        Class::RateLimited | Class::Unreachable | Class::Failed | Class::Lost => RetryPolicy::Again,
        Class::NoImage => RetryPolicy::Once,
    }
}

/// The failure that decides among parallel calls: one that rules out a retry, if any. A call with an unknown
/// outcome may have generated; it must not be paid for again because another call was rate limited.
pub(super) fn decisive(errors: impl Iterator<Item = BackendError>) -> Option<BackendError> {
    let mut errors: Vec<BackendError> = errors.collect();
    let ruled_out = errors
        .iter()
        .position(|error| retry_policy(error) == RetryPolicy::None);
    (!errors.is_empty()).then(|| errors.swap_remove(ruled_out.unwrap_or_default()))
}

/// Returns how long to wait before a retry, or `None` for no retry. `error` ended the latest
/// attempt, over `route`; `before` holds the assignment with the attempts before that.
pub(super) fn wait(
    error: &BackendError,
    route: &str,
    before: &Assignment,
    context: &RetryContext<'_>,
) -> Option<Duration> {
    let class = error.class();
    let tried = tried(before, Some((route, class)));
    let retry_policy = retry_policy(error);
    let times = tried.iter().filter(|(_, other)| *other == class).count();
    if retry_policy == RetryPolicy::None
        || (retry_policy == RetryPolicy::Once && times > 1)
        || context.attempts >= context.attempts_max
    {
        return None;
    }
    let ask = Ask {
        requirements: context.requirements,
        tried: &tried,
        left: context.left,
    };
    let others = context.model.candidates(ask);
    let mut others = others.filter(|route| route.is_fresh(&tried)).peekable();
    // A route whose circuit is open is worth waiting for in the queue only if this route is ruled out.
    let waits_for_other = retry_policy == RetryPolicy::Elsewhere && others.peek().is_some();
    if waits_for_other || others.any(|route| route.breaker.capacity() != Some(0)) {
        return Some(Duration::ZERO);
    }
    if retry_policy == RetryPolicy::Elsewhere {
        return None;
    }
    let asked = match error {
        BackendError::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let wait = backoff(context.routing, context.attempts).max(asked.unwrap_or_default());
    (wait < context.left).then_some(wait)
}

/// What the decision depends on besides the failure.
pub(super) struct RetryContext<'a> {
    /// The model of the task.
    pub(super) model: &'a Model,
    /// What the task requires of a route.
    pub(super) requirements: Requirements,
    /// The configured waits.
    pub(super) routing: &'a Routing,
    /// How many attempts were begun, and how many are allowed.
    pub(super) attempts: u16,
    /// How many attempts a task may have.
    pub(super) attempts_max: u16,
    /// Time until the deadline.
    pub(super) left: Duration,
}

/// Doubles with each attempt, minus a random part of up to half, so that tasks that failed together
/// do not retry together.
fn backoff(routing: &Routing, attempts: u16) -> Duration {
    let doubled = 2_u32.saturating_pow(u32::from(attempts.saturating_sub(1)));
    let wait = routing.retry_wait().saturating_mul(doubled);
    jittered(wait.min(routing.retry_wait_max()), 0.5..=1.0)
}

/// The routes tried so far, each with its failure class.
pub(super) fn tried<'a>(
    assignment: &'a Assignment,
    latest: Option<(&'a str, Class)>,
) -> Vec<(&'a str, Class)> {
    let before = assignment.tried.iter();
    before
        .filter_map(|attempt| Some((attempt.route.as_str(), attempt.class?)))
        .chain(latest)
        .collect()
}

/// What the client is told. Causes go to the log only.
pub(super) fn failure(error: &BackendError) -> Failure {
    let (kind, message) = match (error, error.class()) {
        (BackendError::Refused { message }, _) => (FailureKind::Moderation, message.as_str()),
        (BackendError::Invalid { message }, _) => (FailureKind::Request, message.as_str()),
        (BackendError::Input(_), _) => (FailureKind::Internal, "a reference could not be read"),
        (_, class) => match class {
            Class::Credentials => (
                FailureKind::Upstream,
                "the upstream cannot be used at present",
            ),
            Class::RateLimited => (
                FailureKind::Upstream,
                "the upstream is overloaded at present",
            ),
            Class::Unreachable => (FailureKind::Upstream, "the upstream could not be reached"),
            Class::NoImage => (
                FailureKind::Upstream,
                "the upstream answered without a usable image",
            ),
            Class::Internal => (FailureKind::Internal, "the image could not be stored"),
            Class::Refused
            | Class::Invalid
            | Class::Failed
            | Class::OutcomeUnknown
            | Class::Lost => (FailureKind::Upstream, "the upstream failed"),
        },
    };
    failed(kind, message)
}

/// A failure of this kind, with its message for the client.
pub(super) fn failed(kind: FailureKind, message: &str) -> Failure {
    Failure {
        kind,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_decides_over_other_failures() {
        let detail = String::new;
        let failed = || BackendError::Failed { detail: detail() };
        let unknown = || BackendError::OutcomeUnknown { detail: detail() };
        let class = |errors: Vec<BackendError>| {
            let decisive = decisive(errors.into_iter());
            decisive.map(|error| error.class())
        };
        assert_eq!(class(vec![]), None);
        assert_eq!(class(vec![failed(), failed()]), Some(Class::Failed));
        assert_eq!(
            class(vec![failed(), unknown()]),
            Some(Class::OutcomeUnknown)
        );
    }

    #[test]
    fn an_unreadable_reference_is_retried_and_a_missing_one_is_not() {
        let failed = |kind: io::ErrorKind| retry_policy(&BackendError::Input(kind.into()));
        assert_eq!(failed(io::ErrorKind::ConnectionReset), RetryPolicy::Again);
        assert_eq!(failed(io::ErrorKind::Other), RetryPolicy::Again);
        assert_eq!(failed(io::ErrorKind::NotFound), RetryPolicy::None);
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_with_jitter() {
        let routing: Routing = toml::from_str(
            "failures_max = 1\nopen_ms = 1\nretry_wait_ms = 100\nretry_wait_max_ms = 1000\nsync_wait_ms = 1",
        )
        .unwrap();
        for (attempts, most) in [(1, 100), (2, 200), (3, 400), (9, 1000), (u16::MAX, 1000)] {
            let wait = backoff(&routing, attempts).as_millis();
            assert!((most / 2..=most).contains(&wait), "{attempts}: {wait}");
        }
    }
}
