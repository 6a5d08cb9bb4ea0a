//! What an upstream's errors mean, in its own words and otherwise; and which of them pass.

use std::time::Duration;

use super::protocol::ErrorNames;
use crate::backend::{
    BackendError,
    upstream::error::{ErrorResponse, UpstreamError},
};

const REFUSED: &str = "the upstream's safety system refused the request";
const NO_REASON: &str = "it gives no reason";

/// Why a look at a job led to nothing.
#[derive(Debug)]
pub(super) enum PollError {
    /// It says nothing about the job: worth another look.
    Passing(BackendError),
    /// The job is done, and what came of it could not be had.
    Withheld(BackendError),
    Final(BackendError),
}

impl ErrorNames {
    /// What it means that a job, or an answer of good status, tells of an error.
    pub(super) fn of_ended(&self, error: UpstreamError) -> BackendError {
        let named = self.of_named(&error, None);
        named.unwrap_or_else(|| BackendError::Failed {
            detail: said(error.message, NO_REASON),
        })
    }

    /// What an answer means that is an error by its status.
    pub(super) fn of_status(&self, response: ErrorResponse) -> BackendError {
        // An upstream that is down is not to be taken at its word.
        let named = Some(&response).filter(|response| response.status.is_client_error());
        let named = named.and_then(|response| self.of_named(&response.error, response.retry_after));
        named.unwrap_or_else(|| response.classify())
    }

    /// What the upstream means by an error that it has a name for.
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

/// A refusal, with a message even where the upstream gives none.
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
    /// Of the answer to a look, by its status.
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

    /// Of a look that was not answered to its end; `begun`: an image had begun to come in.
    pub(super) fn of_silence(error: BackendError, begun: bool) -> Self {
        match error {
            BackendError::Sink(_) => Self::Final(error),
            error if begun => Self::Final(error),
            error => Self::Passing(error),
        }
    }
}

/// Whether a request that does no harm when repeated may be repeated.
pub(super) fn passes(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Unreachable { .. }
            | BackendError::OutcomeUnknown { .. }
            | BackendError::RateLimited { .. }
            | BackendError::Failed { .. }
    )
}
