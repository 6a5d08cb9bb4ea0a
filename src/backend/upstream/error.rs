//! Classifies an upstream's errors.

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use serde_json::Value;

use super::{BackendError, google, message};
use crate::{backend::json_images::InvalidAnswer, failure::with_causes};

/// The most that is read of an error's body.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest wait that is honoured; a longer one is cut to this.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

const REFUSAL_CODES: [&str; 5] = [
    "moderation_blocked",
    "content_policy_violation",
    "contentFilter",
    "content_filter",
    "DataInspectionFailed",
];
const REFUSAL_CODE_END: &str = "SensitiveContentDetected";
const REFUSAL_PHRASE: &str = "safety system";

/// How the messages of servers begin that answer 500 to input they cannot read.
const BAD_INPUT_STARTS: [&str; 2] = ["[json.exception", "Invalid encoded image"];

/// Codes for an invalid key, or for an account that cannot be used.
const CREDENTIALS_CODES: [&str; 5] = [
    "API_KEY_INVALID",
    // Google's code for an account without billing, or in a country where the model is not available.
    "FAILED_PRECONDITION",
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
];

/// An upstream's error, in any of the known shapes.
#[derive(Debug, Default)]
pub(in crate::backend) struct UpstreamError {
    /// Cleaned for showing; empty if there was none.
    pub(in crate::backend) message: String,
    /// Its code, its type, and Google's status and reasons.
    names: Vec<String>,
    /// Set only if the body contains a wait.
    retry_after: Option<Duration>,
}

impl UpstreamError {
    /// Reads the value of `error`: an object, a list of objects, or a text.
    pub(in crate::backend) fn of_value(error: &Value, api_key: &str) -> Self {
        // Of a list of errors, the first one counts.
        let error = error.get(0).unwrap_or(error);
        let text = |name: &str| match &error[name] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let said = error.as_str().map_or_else(
            || Some(text("message")).filter(|said| !said.is_empty()),
            |said| Some(said.to_owned()),
        );
        let said = said.unwrap_or_else(|| text("msg"));
        Self {
            message: message::clean(&said, api_key),
            names: [text("code"), text("type")]
                .into_iter()
                .chain(google::names(error))
                .collect(),
            retry_after: google::retry_delay(error).map(|wait| wait.min(RETRY_AFTER_MAX)),
        }
    }

    /// Whether the body says nothing about the error.
    pub(in crate::backend) fn is_empty(&self) -> bool {
        self.message.is_empty() && self.names.iter().all(String::is_empty)
    }

    /// Whether `word` is one of its names or part of its message, in any case.
    pub(in crate::backend) fn says(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        let mut names = self.names.iter();
        names.any(|name| name.to_lowercase() == word) || self.message.to_lowercase().contains(&word)
    }

    /// Whether the upstream's safety system has refused the request.
    pub(in crate::backend) fn is_refusal(&self) -> bool {
        let named = self
            .names
            .iter()
            .any(|name| REFUSAL_CODES.contains(&name.as_str()) || name.ends_with(REFUSAL_CODE_END));
        named || self.message.to_lowercase().contains(REFUSAL_PHRASE)
    }

    /// Whether the operator's key is invalid, or the quota is used up.
    fn is_credentials(&self) -> bool {
        let names = &self.names;
        names
            .iter()
            .any(|name| CREDENTIALS_CODES.contains(&name.as_str()))
    }

    /// Whether the upstream reports too much load.
    fn is_overload(&self) -> bool {
        self.names.iter().any(|name| name == "UNAVAILABLE")
    }

    fn of_body(body: &[u8], api_key: &str) -> Self {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return Self::default();
        };
        // Besides OpenAI's shape, some servers send `message` or `detail` (or a list of details, each with a
        // `msg`), either alone or next to an `error` that is only a code.
        let found = [&body, &body["detail"], &body["error"]];
        let found = found.map(|value| Self::of_value(value, api_key));
        let refusal = found.iter().position(Self::is_refusal);
        let spoken = found.iter().position(|error| !error.message.is_empty());
        let [whole, detail, error] = found;
        match refusal.or(spoken) {
            Some(0) => whole,
            Some(1) => detail,
            _ => error,
        }
    }
}

/// An answer with an error status.
pub(in crate::backend) struct ErrorResponse {
    /// The status.
    pub(in crate::backend) status: StatusCode,
    /// How long to wait, from the headers; `None`: they do not say.
    pub(in crate::backend) retry_after: Option<Duration>,
    /// What the body says.
    pub(in crate::backend) error: UpstreamError,
}

/// Reads an error's body and classifies it.
pub(in crate::backend) async fn read(response: Response, api_key: &str) -> BackendError {
    read_error(response, api_key).await.classify()
}

/// Reads an error's body.
pub(in crate::backend) async fn read_error(mut response: Response, api_key: &str) -> ErrorResponse {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let mut body = Vec::new();
    // An error whose body is cut off is classified by the part that arrived.
    while let Ok(Some(chunk)) = response.chunk().await {
        let left = BODY_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(left)]);
        if body.len() == BODY_BYTES_MAX {
            break;
        }
    }
    let error = UpstreamError::of_body(&body, api_key);
    ErrorResponse {
        status,
        retry_after,
        error,
    }
}

impl ErrorResponse {
    /// The class of this error.
    pub(in crate::backend) fn classify(self) -> BackendError {
        classify(self.status, self.retry_after, self.error)
    }
}

/// Classifies a request that was not answered, or an answer that was cut off.
pub(in crate::backend) fn transport(error: reqwest::Error) -> BackendError {
    if error.is_connect() {
        return not_reached(error);
    }
    interrupted(error)
}

/// The error of a request that certainly had no effect.
pub(in crate::backend) fn not_reached(error: reqwest::Error) -> BackendError {
    BackendError::Unreachable {
        detail: detail(error),
    }
}

/// The error of a connection that failed in any way after the upstream may have started to generate.
pub(in crate::backend) fn interrupted(error: reqwest::Error) -> BackendError {
    BackendError::OutcomeUnknown {
        detail: detail(error),
    }
}

/// The error of an answer that the scanner cannot read.
pub(in crate::backend) fn invalid_answer(error: InvalidAnswer) -> BackendError {
    BackendError::NoImage {
        detail: error.to_string(),
    }
}

fn classify(
    status: StatusCode,
    retry_after: Option<Duration>,
    error: UpstreamError,
) -> BackendError {
    let refused = status.is_client_error() && error.is_refusal();
    let (credentials, overload) = (error.is_credentials(), error.is_overload());
    let retry_after = retry_after.or(error.retry_after);
    let message = match error.message {
        empty if empty.is_empty() => format!("status {}", status.as_u16()),
        message => message,
    };
    let detail = format!("{}: {message}", status.as_u16());
    match status.as_u16() {
        _ if refused => BackendError::Refused { message },
        451 => BackendError::Refused { message },
        _ if credentials => BackendError::Credentials { detail },
        401..=403 => BackendError::Credentials { detail },
        429 => BackendError::RateLimited {
            detail,
            retry_after,
        },
        500 if BAD_INPUT_STARTS
            .iter()
            .any(|start| message.starts_with(start)) =>
        {
            BackendError::Invalid { message }
        }
        503 if overload => BackendError::RateLimited {
            detail,
            retry_after,
        },
        408 | 409 => BackendError::Failed { detail },
        400..=499 => BackendError::Invalid { message },
        300..=399 => BackendError::Failed {
            detail: format!("{detail}; base_url must not answer with a redirect"),
        },
        _ => BackendError::Failed { detail },
    }
}

/// The requested wait: in milliseconds, in seconds, or as a date, relative to the response's own `Date`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let date = |name: &str| httpdate::parse_http_date(text(name)?).ok();
    let asked = number("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number(RETRY_AFTER.as_str()))
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .or_else(|| {
            let (then, now) = (date(RETRY_AFTER.as_str())?, date(DATE.as_str())?);
            then.duration_since(now).ok()
        });
    asked.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// The error with its causes, without the URL.
pub(in crate::backend) fn detail(error: reqwest::Error) -> String {
    with_causes(&error.without_url())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(status: u16, body: &str) -> String {
        let error = UpstreamError::of_body(body.as_bytes(), "sk-secret");
        let error = classify(StatusCode::from_u16(status).unwrap(), None, error);
        format!("{error:?}")
    }

    #[test]
    fn refusals_are_recognised_by_code_or_phrase() {
        let blocked = json!({"error": {"message": "No.", "type": "image_generation_user_error",
            "code": "moderation_blocked", "param": null}});
        let azure = json!({"created": 1, "error": {"code": "contentFilter", "message": "No."}});
        let ark =
            json!({"error": {"code": "OutputImageSensitiveContentDetected", "message": "No."}});
        for body in [blocked, azure, ark] {
            let refused = r#"Refused { message: "No." }"#;
            assert_eq!(class(400, &body.to_string()), refused);
            assert_eq!(class(403, &body.to_string()), refused);
        }
        let phrase = r#"{"error": "Rejected by our Safety System."}"#;
        assert!(class(400, phrase).starts_with("Refused"));
        assert!(class(451, "<html>").starts_with("Refused"));
        assert!(class(503, phrase).starts_with("Failed"));
    }

    #[test]
    fn googles_errors_are_read_too() {
        let body = |code: u16, status: &str, details: Value| {
            let error =
                json!({"code": code, "message": "No.", "status": status, "details": details});
            json!({"error": error}).to_string()
        };
        let limited = body(429, "RESOURCE_EXHAUSTED", json!([{"retryDelay": "3.29s"}]));
        let expected = r#"RateLimited { detail: "429: No.", retry_after: Some(3.29s) }"#;
        assert_eq!(class(429, &limited), expected);
        let overloaded = body(503, "UNAVAILABLE", json!([]));
        assert!(class(503, &overloaded).starts_with("RateLimited"));
        // Google reports an invalid key as an invalid argument.
        let key = body(
            400,
            "INVALID_ARGUMENT",
            json!([{"reason": "API_KEY_INVALID"}]),
        );
        assert!(class(400, &key).starts_with("Credentials"));
        let billing = body(400, "FAILED_PRECONDITION", json!([]));
        assert!(class(400, &billing).starts_with("Credentials"));
        let argument = body(400, "INVALID_ARGUMENT", json!([]));
        assert!(class(400, &argument).starts_with("Invalid"));
    }

    #[test]
    fn every_status_has_its_class() {
        let body =
            r#"{"error": {"message": "It is so.", "type": "t", "param": null, "code": 1302}}"#;
        for status in [400, 404, 405, 413, 415, 422] {
            assert_eq!(class(status, body), r#"Invalid { message: "It is so." }"#);
        }
        for status in [401, 402, 403] {
            let detail = format!(r#"Credentials {{ detail: "{status}: It is so." }}"#);
            assert_eq!(class(status, body), detail);
        }
        for status in [307, 408, 409, 500, 502, 503, 504, 529] {
            assert!(class(status, body).starts_with("Failed"), "{status}");
        }
        assert!(class(429, body).starts_with("RateLimited"));
        let quota = r#"{"error": {"message": "Pay.", "code": "insufficient_quota"}}"#;
        assert_eq!(class(429, quota), r#"Credentials { detail: "429: Pay." }"#);
    }

    #[test]
    fn bodies_of_other_shapes_are_read_too() {
        for body in [
            r#"{"error": "prompt required"}"#,
            r#"{"message": "prompt required"}"#,
            r#"{"detail": "prompt required"}"#,
            r#"{"error": {"code": "x"}, "message": "prompt required"}"#,
            r#"{"error": "server_error", "message": "prompt required"}"#,
            r#"{"error": "HTTPException", "detail": "prompt required", "body": "", "errors": ""}"#,
            r#"{"detail": [{"loc": ["body"], "msg": "prompt required", "type": "missing"}]}"#,
        ] {
            assert_eq!(
                class(400, body),
                r#"Invalid { message: "prompt required" }"#
            );
        }
        for said in [
            "[json.exception.type_error.302] no",
            "Invalid encoded image",
        ] {
            let body = json!({"error": "server_error", "message": said}).to_string();
            assert!(class(500, &body).starts_with("Invalid"));
        }
        assert!(class(500, r#"{"error": "OutOfMemoryError", "detail": ""}"#).starts_with("Failed"));
        for body in [
            "",
            "<html>not found</html>",
            "[]",
            "null",
            r#"{"error": null}"#,
        ] {
            assert_eq!(class(404, body), r#"Invalid { message: "status 404" }"#);
        }
    }

    #[test]
    fn waits_are_read_in_every_form() {
        let wait = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            retry_after(&headers.collect())
        };
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[("retry-after", "7")]), ms(7000));
        assert_eq!(
            wait(&[("retry-after", "7"), ("retry-after-ms", "1500")]),
            ms(1500)
        );
        assert_eq!(wait(&[("retry-after", "1e300")]), None);
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "NaN")]), None);
        assert_eq!(wait(&[("retry-after", "86400")]), Some(RETRY_AFTER_MAX));
        let date = ("date", "Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(
            wait(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT"), date]),
            ms(30_000)
        );
        assert_eq!(
            wait(&[("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT"), date]),
            None
        );
    }
}
