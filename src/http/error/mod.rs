//! Errors as clients see them: one body format, and one table of statuses. Causes are logged here once, and
//! never sent.

mod statuses;

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

use crate::{app::App, ids::TaskId};

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

/// An error response.
#[derive(Clone, Debug)]
pub(in crate::http) struct ApiError {
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
pub(in crate::http) struct ErrorBody {
    /// For people. Contains no cause.
    pub message: String,
    /// The class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The specific error, as a string for programs, or null.
    pub code: Value,
    /// The name of the parameter at fault, or null.
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
    pub(in crate::http) fn new(status: StatusCode, message: impl Into<String>) -> Self {
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
    pub(in crate::http) fn field(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param)
    }

    /// 400.
    pub(in crate::http) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(in crate::http) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    /// 401.
    pub(in crate::http) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
    }

    /// 429 for a rate limit.
    pub(in crate::http) fn too_many_requests(retry_after_s: u32) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Rate limit exceeded. Please try again later",
        )
        .code(429)
        .retry_after(retry_after_s)
    }

    /// 500 with a generic message; logs the cause.
    pub(in crate::http) fn internal(message: &str, cause: &(dyn Error + 'static)) -> Self {
        tracing::error!(error = cause, "a request failed: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503 with `Retry-After`.
    pub(in crate::http) fn unavailable(message: &str, retry_after_s: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(retry_after_s)
    }

    /// Sets `code` in the body.
    #[must_use]
    pub(in crate::http) fn code(mut self, code: impl Into<Value>) -> Self {
        self.body.code = code.into();
        self
    }

    /// Sets `param` in the body: the field at fault.
    #[must_use]
    pub(in crate::http) fn param(mut self, param: &str) -> Self {
        self.body.param = param.into();
        self
    }

    /// Sets `Retry-After`, at least one second.
    #[must_use]
    pub(in crate::http) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = NonZeroU32::new(seconds.max(1));
        self
    }

    /// Tells the client's SDK not to retry, since an upstream was called.
    #[must_use]
    pub(in crate::http) fn spent(mut self) -> Self {
        self.spent = true;
        self
    }

    /// The body's fields, to show them in a failed task.
    pub(in crate::http) fn body(&self) -> &ErrorBody {
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
pub(in crate::http) async fn render(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
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

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body.message)
    }
}

impl Error for ApiError {}
