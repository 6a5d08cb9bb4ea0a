//! The table of statuses: what each error from below HTTP is to a client.

use std::error::Error;

use axum::http::StatusCode;

use super::ApiError;
use crate::{
    billing::Refusal,
    db::{Trouble, trouble},
    ids::TaskId,
    images::{
        admission::Overload,
        generate::GenerateError,
        intake::IntakeError,
        request::{InvalidDataUrl, RequestError},
        submit::SubmitError,
    },
    storage::{self, StorageError},
    tasks::{Failure, FailureKind},
};

/// `Retry-After` while the database fails: a restart or a contended lock usually takes seconds.
const DATABASE_RETRY_S: u32 = 2;
/// `Retry-After` while storage fails; it is probed every second.
const STORAGE_RETRY_S: u32 = 5;
/// `Retry-After` at a key's task limit: images take seconds, so some of its tasks may have ended by then.
const CONCURRENCY_RETRY_S: u32 = 5;
/// `Retry-After` while the end of a task is not known.
const UNKNOWN_END_RETRY_S: u32 = 5;

impl ApiError {
    /// 503 if the database is unreachable or busy, since a retry may succeed; 500 if it rejected our statement.
    fn of_the_database(message: &str, cause: &sqlx::Error) -> Self {
        match trouble(cause) {
            Trouble::Unreachable | Trouble::Contended => {
                tracing::warn!(error = cause as &dyn Error, "a request failed: {message}");
                Self::unavailable(message, DATABASE_RETRY_S)
            }
            Trouble::Refused | Trouble::Other => Self::internal(message, cause),
        }
    }

    /// 503 if storage fails as a whole, as before a request while this is known; 500 if a retry would fail as well.
    fn of_storage(message: &str, cause: &StorageError) -> Self {
        match cause.trouble() {
            Some(trouble) => {
                tracing::warn!(error = cause as &dyn Error, "a request failed: {message}");
                trouble.into()
            }
            None => Self::internal(message, cause),
        }
    }

    /// 503 for a task whose end was not reported after its deadline. The task may still complete.
    fn unknown_end(task: TaskId) -> Self {
        let message = "the end of the task is not known yet: look it up by its id";
        Self {
            spent: true,
            task: Some(Box::new(task)),
            ..Self::unavailable(message, UNKNOWN_END_RETRY_S)
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Key => return Self::unauthorized("invalid API key"),
            Refusal::Balance { .. } => "insufficient_balance",
            Refusal::Quota { .. } => "quota_exceeded",
        };
        Self::new(StatusCode::PAYMENT_REQUIRED, refusal.to_string()).code(code)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(refusal) => refusal.into(),
            SubmitError::Concurrency { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
                    .code("concurrency_limit")
                    .retry_after(CONCURRENCY_RETRY_S)
            }
            SubmitError::KeyReused => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
                    .code("idempotency_key_reused")
            }
            SubmitError::Abandoned => Self::unavailable(&error.to_string(), DATABASE_RETRY_S),
            SubmitError::Database(cause) => {
                Self::of_the_database("the task could not be stored", &cause)
            }
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Overload(overload) => overload.into(),
            GenerateError::Submit(error) => error.into(),
            GenerateError::Database(error) => error.into(),
            GenerateError::Fingerprint(error) => {
                Self::internal("the request could not be accepted", &error)
            }
            GenerateError::EndUnknown(task) => Self::unknown_end(task),
            GenerateError::ShuttingDown | GenerateError::Closed(_) => {
                Self::unavailable(&error.to_string(), 1)
            }
        }
    }
}

impl From<Overload> for ApiError {
    fn from(overload: Overload) -> Self {
        let seconds = overload.retry_after().as_secs_f64().ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most a minute"
        )]
        let seconds = seconds as u32;
        if overload.is_own() {
            Self::new(StatusCode::TOO_MANY_REQUESTS, overload.to_string())
                .code("concurrency_limit")
                .retry_after(seconds)
        } else {
            Self::unavailable(&overload.to_string(), seconds)
        }
    }
}

impl From<storage::Trouble> for ApiError {
    fn from(trouble: storage::Trouble) -> Self {
        Self::unavailable(trouble.message(), STORAGE_RETRY_S)
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Invalid { param, message } => Self::field(&param, message),
            RequestError::UnknownModel { .. } => {
                Self::new(StatusCode::NOT_FOUND, error.to_string())
                    .param("model")
                    .code("model_not_found")
            }
            RequestError::Refused(refusal) => refusal.into(),
            RequestError::Inline { param, error } => Self::from(error).param(param),
            RequestError::Database { param, cause } => {
                let mut error = Self::from(cause);
                error.body.param = param.into();
                error
            }
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&sqlx::Error> for ApiError {
    fn from(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut => Self::unavailable("the database is busy", 1),
            error => Self::of_the_database("the database did not answer", error),
        }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        Self::internal("storage did not answer", &error)
    }
}

impl From<InvalidDataUrl> for ApiError {
    fn from(error: InvalidDataUrl) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl<E: Error + Into<Self> + 'static> From<IntakeError<E>> for ApiError {
    fn from(error: IntakeError<E>) -> Self {
        match error {
            IntakeError::Invalid(invalid) => Self::bad_request(invalid.to_string()),
            IntakeError::TooLarge { .. } | IntakeError::Full { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            IntakeError::Read(error) => error.into(),
            IntakeError::Database(cause) => Self::of_the_database("failed to upload image", &cause),
            IntakeError::Storage(cause) => Self::of_storage("failed to upload image", &cause),
        }
    }
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        let (status, code) = match failure.kind {
            FailureKind::Moderation => (StatusCode::BAD_REQUEST, "moderation_blocked"),
            FailureKind::Request => (StatusCode::BAD_REQUEST, "upstream_rejected"),
            FailureKind::Reference => (StatusCode::BAD_REQUEST, "invalid_reference"),
            FailureKind::Upstream => (StatusCode::BAD_GATEWAY, "upstream_error"),
            FailureKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
            FailureKind::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
        };
        Self::new(status, &failure.message).code(code).spent()
    }
}
