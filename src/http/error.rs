//! Errors as clients see them: one body format, and one table of statuses. Causes are logged here once, and
//! never sent.

use std::{error::Error, num::NonZeroU32, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    app::App,
    billing::Refusal,
    db::{Trouble, trouble},
    ids::TaskId,
    image::{InvalidImage, SizeError},
    images::{
        admission::Overload, generate::GenerateError, intake::IntakeError, submit::SubmitError,
    },
    storage::{self, StorageError},
    tasks::{Failure, FailureKind},
};

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

/// An error response.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after_s: Option<NonZeroU32>,
    /// An upstream was called, so a retry would pay it again.
    spent: bool,
    /// The task whose result can be polled. Boxed, since few errors have one.
    task: Option<Box<TaskId>>,
}

/// The fields of the error body that differ from error to error.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ErrorBody {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub code: Value,
    pub param: Value,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Provided<'a>,
}

#[derive(Serialize)]
struct Provided<'a> {
    #[serde(flatten)]
    body: &'a ErrorBody,
    provider: &'a str,
}

impl ApiError {
    /// An error with the default `type` of its status.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            kind: kind_of(status),
            code: Value::Null,
            param: Value::Null,
        };
        Self {
            status,
            body,
            retry_after_s: None,
            spent: false,
            task: None,
        }
    }

    /// 400 for a field of the request.
    pub(super) fn field(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param)
    }

    /// 400.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    /// 401.
    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
    }

    /// 429 for a rate limit.
    pub(super) fn too_many_requests(retry_after_s: u32) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Rate limit exceeded. Please try again later",
        )
        .code(429)
        .retry_after(retry_after_s)
    }

    /// 500 with a generic message; logs the cause.
    pub(super) fn internal(message: &str, cause: &(dyn Error + 'static)) -> Self {
        tracing::error!(error = cause, "a request failed: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

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

    /// 503 with `Retry-After`.
    pub(super) fn unavailable(message: &str, retry_after_s: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(retry_after_s)
    }

    /// 503 for a task whose end was not reported after its deadline. The task may still complete.
    pub(super) fn unknown_end(task: TaskId) -> Self {
        let message = "the end of the task is not known yet: look it up by its id";
        Self {
            spent: true,
            task: Some(Box::new(task)),
            ..Self::unavailable(message, UNKNOWN_END_RETRY_S)
        }
    }

    /// Sets `code` in the body.
    #[must_use]
    pub(super) fn code(mut self, code: impl Into<Value>) -> Self {
        self.body.code = code.into();
        self
    }

    /// Sets `param` in the body: the field at fault.
    #[must_use]
    pub(super) fn param(mut self, param: &str) -> Self {
        self.body.param = param.into();
        self
    }

    /// Sets `Retry-After`, at least one second.
    #[must_use]
    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = NonZeroU32::new(seconds.max(1));
        self
    }

    /// Tells the client's SDK not to retry, since an upstream was called.
    #[must_use]
    pub(super) fn spent(mut self) -> Self {
        self.spent = true;
        self
    }

    /// The body's fields, to show them in a failed task.
    pub(super) fn body(&self) -> &ErrorBody {
        &self.body
    }
}

fn kind_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "payment_required",
        StatusCode::NOT_FOUND | StatusCode::GONE => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => SERVER_ERROR,
        _ => INVALID_REQUEST,
    }
}

/// Only attaches the error: [`render`] writes the body, since it knows the gateway's name.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// Middleware: writes the body of every error, including the framework's own.
pub(super) async fn render(State(app): State<App>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = match response.extensions().get::<Arc<ApiError>>() {
        Some(error) => Arc::clone(error),
        None => Arc::new(ApiError::new(status, framework_message(status))),
    };
    let (mut parts, _) = response.into_parts();
    let provided = Provided {
        body: &error.body,
        provider: &app.config.server.provider,
    };
    let text = serde_json::to_vec(&Envelope { error: provided }).unwrap_or_default();
    let headers = &mut parts.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = error.retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.get().into());
    }
    if let Some(id) = &error.task
        && let Ok(id) = HeaderValue::try_from(id.to_string())
    {
        headers.insert("x-task-id", id);
    }
    if error.spent {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    Response::from_parts(parts, Body::from(text))
}

fn framework_message(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "no such route",
        StatusCode::METHOD_NOT_ALLOWED => "this route does not take that method",
        _ => status.canonical_reason().unwrap_or("the request failed"),
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(Refusal::Key) => Self::unauthorized("invalid API key"),
            SubmitError::Refused(refusal @ Refusal::Balance { .. }) => {
                Self::new(StatusCode::PAYMENT_REQUIRED, refusal.to_string())
                    .code("insufficient_balance")
            }
            SubmitError::Refused(refusal @ Refusal::Quota { .. }) => {
                Self::new(StatusCode::PAYMENT_REQUIRED, refusal.to_string()).code("quota_exceeded")
            }
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

/// A database restart or a contended lock usually takes seconds.
const DATABASE_RETRY_S: u32 = 2;
const UNKNOWN_END_RETRY_S: u32 = 5;

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Overload(overload) => overload.into(),
            GenerateError::Submit(error) => error.into(),
            GenerateError::Database(error) => error.into(),
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

/// `Retry-After` while storage fails; it is probed every second.
const STORAGE_RETRY_S: u32 = 5;

impl From<storage::Trouble> for ApiError {
    fn from(trouble: storage::Trouble) -> Self {
        Self::unavailable(trouble.message(), STORAGE_RETRY_S)
    }
}

/// `Retry-After` at a key's task limit: images take seconds, so some of its tasks may have ended by then.
const CONCURRENCY_RETRY_S: u32 = 5;

impl From<SizeError> for ApiError {
    fn from(error: SizeError) -> Self {
        Self::field(error.field, error.message)
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

impl From<InvalidImage> for ApiError {
    fn from(error: InvalidImage) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// An error while reading the image is already an `ApiError`.
impl From<IntakeError<ApiError>> for ApiError {
    fn from(error: IntakeError<ApiError>) -> Self {
        match error {
            IntakeError::Invalid(invalid) => invalid.into(),
            IntakeError::TooLarge { .. } | IntakeError::Full { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            IntakeError::Read(error) => error,
            IntakeError::Database(cause) => Self::of_the_database("failed to upload image", &cause),
            error @ IntakeError::Storage(_) => Self::internal("failed to upload image", &error),
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

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body.message)
    }
}

impl Error for ApiError {}
