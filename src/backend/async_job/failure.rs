//! Classifies an upstream's errors by its own names and in general, and tells which are temporary.

use std::time::Duration;

use super::protocol::ErrorNames;
use crate::backend::{
    BackendError,
    upstream::error::{ErrorResponse, UpstreamError},
};

const REFUSED: &str = "the upstream's safety system refused the request";
const NO_REASON: &str = "it gives no reason";

/// Why a poll of a job failed.
#[derive(Debug)]
pub(super) enum PollError {
    /// Says nothing about the job: worth another poll.
    Passing(BackendError),
    /// The job is done, but its result could not be fetched.
    Withheld(BackendError),
    /// Another poll cannot help.
    Final(BackendError),
}

impl ErrorNames {
    /// Classifies an error reported by a job, or by an answer with a successful status.
    pub(super) fn of_ended(&self, error: UpstreamError) -> BackendError {
        let named = self.of_named(&error, None);
        named.unwrap_or_else(|| BackendError::Failed {
            detail: said(error.message, NO_REASON),
        })
    }

    /// Classifies an answer with an error status.
    pub(super) fn of_status(&self, response: ErrorResponse) -> BackendError {
        // The body of an upstream that is down is not trusted.
        let named = Some(&response).filter(|response| response.status.is_client_error());
        let named = named.and_then(|response| self.of_named(&response.error, response.retry_after));
        named.unwrap_or_else(|| response.classify())
    }

    /// Classifies an error for which the upstream has a name.
    pub(super) fn of_named(
        &self,
        error: &UpstreamError,
        retry_after: Option<Duration>,
    ) -> Option<BackendError> {
        let is = |names: &[String]| names.iter().any(|name| error.says(name));
        let message = error.message.clone();
        if error.is_refusal() || is(&self.refused) {
            return Some(refused(message));
        }
        let detail = said(message, NO_REASON);
        if is(&self.credentials) {
            Some(BackendError::Credentials { detail })
        } else if is(&self.rate_limited) {
            Some(BackendError::RateLimited {
                detail,
                retry_after,
            })
        } else if is(&self.invalid) {
            Some(BackendError::Invalid { message: detail })
        } else {
            None
        }
    }
}

/// A refusal, with a default message if the upstream gives none.
pub(super) fn refused(message: String) -> BackendError {
    BackendError::Refused {
        message: said(message, REFUSED),
    }
}

fn said(message: String, otherwise: &str) -> String {
    if message.is_empty() {
        return otherwise.to_owned();
    }
    message
}

impl PollError {
    /// Classifies the answer to a poll by its status.
    pub(super) fn of_status(names: &ErrorNames, response: ErrorResponse) -> Self {
        let status = response.status.as_u16();
        match (status, names.of_status(response)) {
            (404 | 410, BackendError::Invalid { message }) => Self::Final(BackendError::Failed {
                detail: format!("the upstream does not know the job (any more): {message}"),
            }),
            (408 | 409 | 425 | 429 | 500.., error) => Self::Passing(error),
            (_, error) => Self::Final(error),
        }
    }

    /// Classifies a poll without a complete answer; `begun`: part of an image had arrived.
    pub(super) fn of_silence(error: BackendError, begun: bool) -> Self {
        match error {
            BackendError::Sink(_) => Self::Final(error),
            error if begun => Self::Final(error),
            error => Self::Passing(error),
        }
    }
}

/// Whether the error is temporary, so that a request that is safe to repeat may be repeated.
pub(super) fn passes(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Unreachable { .. }
            | BackendError::OutcomeUnknown { .. }
            | BackendError::RateLimited { .. }
            | BackendError::Failed { .. }
    )
}
