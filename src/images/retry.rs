//! What follows from a failed attempt: what the client is told, and whether and when the task is tried
//! again. The one place where that is decided, for every backend alike.

use std::{io, time::Duration};

use crate::{
    backend::{
        BackendError,
        catalog::{Ask, Model, Requirements},
    },
    config::Routing,
    failure::Class,
    tasks::{Assignment, Failure, FailureKind},
};

/// What may be done after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RetryPolicy {
    /// Nothing: another try would end the same, or be paid for twice.
    None,
    /// Another route, but not this one.
    Elsewhere,
    /// Another route; this one again where there is no other.
    Again,
    /// The same, but only once in all.
    Once,
}

fn retry_policy(error: &BackendError) -> RetryPolicy {
    // The upstream never got the whole request. What is gone from storage stays gone.
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

/// The failure that decides, of those of calls made at once: one that rules another try out, if there is one.
/// What a silent call may have generated is not to be paid for again because another one was told to wait.
pub(super) fn decisive(errors: impl Iterator<Item = BackendError>) -> Option<BackendError> {
    let mut errors: Vec<BackendError> = errors.collect();
    let ruled_out = errors
        .iter()
        .position(|error| retry_policy(error) == RetryPolicy::None);
    (!errors.is_empty()).then(|| errors.swap_remove(ruled_out.unwrap_or_default()))
}

/// When to try again; `None`: not at all. `error` ended the latest attempt of a task that was begun
/// `attempts` times and has `left` until its deadline; `before` is what was tried before that.
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
    // One whose circuit is open is waited for in the queue, where there is nothing else to do.
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

/// What a decision depends on beside the failure.
pub(super) struct RetryContext<'a> {
    pub(super) model: &'a Model,
    pub(super) requirements: Requirements,
    pub(super) routing: &'a Routing,
    /// How often the task was begun, and how often it may be.
    pub(super) attempts: u16,
    pub(super) attempts_max: u16,
    /// Until its deadline.
    pub(super) left: Duration,
}

/// Twice as long each time, and by chance up to a half less, so that what failed together does not come
/// again together.
fn backoff(routing: &Routing, attempts: u16) -> Duration {
    let doubled = 2_u32.saturating_pow(u32::from(attempts.saturating_sub(1)));
    let wait = routing.retry_wait().saturating_mul(doubled);
    wait.min(routing.retry_wait_max())
        .mul_f64(rand::random_range(0.5..=1.0))
}

/// The routes tried so far, with what came of each try.
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

/// What the client is told; causes go to the log only.
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
    fn a_silent_call_decides_whatever_the_others_say() {
        let detail = String::new;
        let failed = || BackendError::Failed { detail: detail() };
        let silent = || BackendError::OutcomeUnknown { detail: detail() };
        let class = |errors: Vec<BackendError>| {
            let decisive = decisive(errors.into_iter());
            decisive.map(|error| error.class())
        };
        assert_eq!(class(vec![]), None);
        assert_eq!(class(vec![failed(), failed()]), Some(Class::Failed));
        assert_eq!(class(vec![failed(), silent()]), Some(Class::OutcomeUnknown));
    }

    #[test]
    fn a_reference_that_cannot_be_read_is_read_again_and_one_that_is_gone_is_not() {
        let failed = |kind: io::ErrorKind| retry_policy(&BackendError::Input(kind.into()));
        assert_eq!(failed(io::ErrorKind::ConnectionReset), RetryPolicy::Again);
        assert_eq!(failed(io::ErrorKind::Other), RetryPolicy::Again);
        assert_eq!(failed(io::ErrorKind::NotFound), RetryPolicy::None);
    }

    #[test]
    fn waits_double_up_to_the_most_and_are_never_alike() {
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
