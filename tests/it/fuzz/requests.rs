//! Whole requests, to a gateway in this process. The sender has no money, so none may be accepted, and each must be
//! answered with a client error.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Uri, header},
};
use base64_simd::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

use super::fuzz;
use crate::harness::{TestApp, caller::Caller};

const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const BOUNDARY: &str = "fuzz";

struct Gateway {
    runtime: Runtime,
    app: TestApp,
    router: Router,
    caller: Caller,
}

impl Gateway {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let app = runtime.block_on(TestApp::start());
        let caller = runtime.block_on(app.caller("0"));
        let router = easel::http::router(app.app.clone());
        Self {
            runtime,
            app,
            router,
            caller,
        }
    }

    /// Status and body.
    fn ask(&self, method: Method, path: &str, content_type: &str, body: &[u8]) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, content_type)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.caller.key))
            .body(Body::from(body.to_vec()))
            .unwrap();
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await;
            let body = serde_json::from_slice(&body.unwrap()).unwrap_or_default();
            (status, body)
        })
    }

    /// Asserts a client error with an error body that reveals no internals.
    fn refuses(&self, path: &str, content_type: &str, body: &[u8]) {
        let (status, answer) = self.ask(Method::POST, path, content_type, body);
        assert!((400..500).contains(&status), "{status} {answer}");
        is_error(&answer);
    }

    /// Asserts that there is no task and no money moved.
    fn finish(self) {
        let Self { runtime, app, .. } = self;
        runtime.block_on(app.finish());
    }
}

fn is_error(answer: &Value) {
    let error = answer["error"].as_object().unwrap();
    assert_eq!(error.len(), 5, "{answer}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && message.len() < 2_000, "{message}");
    for inside in ["SELECT", "sqlx", "panicked", "src/", "thread '"] {
        assert!(!message.contains(inside), "{message}");
    }
}

#[test]
fn json_bodies() {
    let gateway = Gateway::start();
    let words = [
        "\"n\":",
        "\"size\":",
        "\"image_urls\":[",
        "null",
        "1e999",
        "\\u0000",
        "\\ud800",
        "{",
        "[",
        "]}",
    ];
    fuzz!("json_bodies", &words, |input: &[u8]| {
        gateway.refuses("/v1/images/generations", "application/json", input);
    });
    gateway.finish();
}

/// As a reference in a request, and as clients send it that get base64 wrong.
#[test]
fn data_urls() {
    let gateway = Gateway::start();
    let words = [
        "data:",
        "image/png",
        ";base64,",
        ";charset=utf-8",
        ",",
        "=",
        "%41",
        "-_",
        "\n",
        "iVBORw0KGgo",
    ];
    fuzz!("data_urls", &words, |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let image = STANDARD.encode_to_string(input);
        for url in [text.into_owned(), format!("data:image/png;base64,{image}")] {
            let body = json!({"model": "gpt-image-2", "prompt": "x", "image": url}).to_string();
            gateway.refuses("/v1/images/edits", "application/json", body.as_bytes());
        }
    });
    gateway.finish();
}

#[test]
fn forms() {
    let gateway = Gateway::start();
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let words = [
        "--fuzz\r\n",
        "--fuzz--",
        "\r\n\r\n",
        "; name=\"image[]\"",
        "; filename=\"a.png\"",
        "content-type: image/png\r\n",
    ];
    fuzz!("forms", &words, |input: &[u8]| {
        gateway.refuses("/v1/images/edits", &content_type, input);
        let (status, answer) =
            gateway.ask(Method::POST, "/v1/uploads/images", &content_type, input);
        if status == 200 {
            assert!(
                answer["url"].as_str().unwrap().contains("/f/image/"),
                "{answer}"
            );
        } else {
            assert!((400..500).contains(&status), "{status} {answer}");
            is_error(&answer);
        }
    });
    gateway.finish();
}

/// Links cannot be guessed: no arbitrary path leads to bytes.
#[test]
fn links() {
    let gateway = Gateway::start();
    let words = [
        "/f/image/",
        "/f/object/",
        "/v1/images/files/",
        "..",
        "%2f",
        "%00",
        "//",
        "-1.png",
        "?download=1",
        "%ff",
    ];
    fuzz!("links", &words, |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        for prefix in ["", "/f/image/", "/f/object/", "/v1/images/files/"] {
            let path = format!("{prefix}{text}");
            if !path.starts_with('/') || path.parse::<Uri>().is_err() {
                continue;
            }
            let (status, answer) = gateway.ask(Method::GET, &path, "text/plain", b"");
            let is_link = ["/f/", "/v1/images/files/"]
                .iter()
                .any(|known| path.starts_with(known));
            if is_link {
                assert!((400..500).contains(&status), "{status} {path}");
                is_error(&answer);
            } else {
                assert!(status < 500, "{status} {path}");
            }
        }
    });
    gateway.finish();
}
