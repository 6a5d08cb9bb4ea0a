//! A fake of Gemini's API, as strict as the real one: it checks fields, ratios, sizes and limits, accepts both
//! alphabets of base64, and refuses with HTTP 200. The official SDK verifies it: see `tests/it/end_to_end/clients.rs`.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Response, StatusCode, Uri},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::request::Request;
use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::upstream,
};

/// The key it requires.
pub const KEY: &str = "AIza-fake-5d20";
/// A prompt that its safety system refuses.
pub const REFUSED_PROMPT: &str = "something unsafe";

/// A fake that listens on loopback until it is dropped.
pub struct Gemini {
    /// Its base URL, without `/v1beta`.
    pub url: String,
    state: Arc<Mutex<Server>>,
    _serving: JoinSet<()>,
}

/// The state of the fake.
pub struct Server {
    scenario: Scenario,
    /// The answer to the next call, with its status.
    pub next: Option<(u16, String)>,
    /// The bodies that arrived, in order.
    pub received: Vec<Value>,
    /// The paths that were called.
    pub paths: Vec<String>,
    inputs: Vec<Vec<u8>>,
}

type Shared = State<Arc<Mutex<Server>>>;

impl Gemini {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Server {
            scenario: Scenario::Generates,
            next: None,
            received: Vec::new(),
            paths: Vec::new(),
            inputs: Vec::new(),
        }));
        let router = Router::new()
            .route("/v1beta/models/{call}", post(generate))
            .route("/v1beta/models", get(models))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&state));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            state,
            _serving: serving,
        }
    }

    /// Locks the state of the fake.
    pub fn server(&self) -> MutexGuard<'_, Server> {
        self.state.lock().unwrap()
    }

    /// Sets the answer to the next call.
    pub fn next(&self, status: u16, body: &Value) {
        self.server().next = Some((status, body.to_string()));
    }

    /// The settings with other sizes.
    pub fn settings_with(&self, image_sizes: &str) -> String {
        let url = &self.url;
        format!(
            "kind = \"gemini\"\nbase_url = \"{url}/v1beta\"\napi_key = \"{KEY}\"\n\
             image_sizes = {image_sizes}\n"
        )
    }
}

impl FakeUpstream for Gemini {
    fn settings(&self) -> String {
        self.settings_with(r#"["1K", "2K"]"#)
    }

    fn model(&self) -> String {
        "gemini-3-pro-image".to_owned()
    }

    fn play(&self, scenario: Scenario) {
        self.server().scenario = scenario;
    }

    fn asked(&self) -> usize {
        self.server().paths.len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.server().inputs.clone()
    }

    fn cancelled(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An error in Google's shape.
pub fn error(code: u16, status: &str, message: &str, details: &Value) -> Value {
    json!({"error": {"code": code, "message": message, "status": status, "details": details}})
}

/// An answer with one candidate that has these parts.
pub fn answer(parts: &[Value], finish_reason: &str) -> Value {
    json!({
        "candidates": [{"content": {"parts": parts, "role": "model"},
            "finishReason": finish_reason, "index": 0}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 1120, "totalTokenCount": 1125,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}]},
        "modelVersion": "gemini-3-pro-image", "responseId": "fake"})
}

/// A part with this image, inline.
pub fn image(bytes: &[u8]) -> Value {
    let data = base64_simd::STANDARD.encode_to_string(bytes);
    json!({"inlineData": {"mimeType": "image/png", "data": data}})
}

fn reply(status: u16, body: String) -> Response<Body> {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    let response = response.header("content-type", "application/json; charset=UTF-8");
    response.body(Body::from(body)).unwrap()
}

/// The API reports a wrong key as an invalid argument.
fn wrong_key() -> (u16, Value) {
    let reason = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
    let message = "API key not valid. Please pass a valid API key.";
    (400, error(400, "INVALID_ARGUMENT", message, &reason))
}

fn has_key(headers: &HeaderMap) -> bool {
    headers.get("x-goog-api-key").is_some_and(|key| key == KEY)
}

async fn generate(state: Shared, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let (scenario, next) = {
        let mut server = state.0.lock().unwrap();
        server.paths.push(uri.path().to_owned());
        (server.scenario, server.next.take())
    };
    if let Some((status, body)) = next {
        return reply(status, body);
    }
    if !has_key(&headers) {
        let (status, body) = wrong_key();
        return reply(status, body.to_string());
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let call = uri.path().rsplit('/').next().unwrap_or_default();
    let request = match Request::read(call, &body) {
        Ok(request) => request,
        Err(message) => {
            let body = error(400, "INVALID_ARGUMENT", &message, &json!([]));
            return reply(400, body.to_string());
        }
    };
    {
        let mut server = state.0.lock().unwrap();
        server.received.push(body);
        server.inputs.clone_from(&request.images);
    }
    if scenario == Scenario::Hangs {
        std::future::pending::<()>().await;
    }
    let (status, body) = play(scenario, &request);
    let body = body.to_string();
    if scenario == Scenario::BreaksOff {
        return cut_off(&body);
    }
    reply(status, body)
}

fn play(scenario: Scenario, request: &Request) -> (u16, Value) {
    let fails = |code, status: &str, details: &Value| (code, error(code, status, "No.", details));
    match scenario {
        Scenario::FindsInvalid => fails(400, "INVALID_ARGUMENT", &json!([])),
        Scenario::KnowsNoKey => wrong_key(),
        Scenario::LimitsRate => {
            let details = json!([
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}]);
            fails(429, "RESOURCE_EXHAUSTED", &details)
        }
        Scenario::Fails => fails(500, "INTERNAL", &json!([])),
        Scenario::GeneratesNothing => (200, answer(&[json!({"text": "I can not."})], "STOP")),
        Scenario::GeneratesNoImage => (200, answer(&[image(b"<html>It works!</html>")], "STOP")),
        _ if scenario == Scenario::Refuses || request.prompt == REFUSED_PROMPT => (
            200,
            json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
                "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5},
                "modelVersion": "gemini-3-pro-image"}),
        ),
        _ => {
            let mut result = image(&upstream::image(request.size.0, request.size.1, 0));
            result["thoughtSignature"] = "c2lnbmF0dXJl".into();
            (200, answer(&[result], "STOP"))
        }
    }
}

/// Sends half of the body, then breaks the connection.
fn cut_off(body: &str) -> Response<Body> {
    let half = Ok(Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]));
    let end = stream::once(async {
        // Buffered bytes are sent while the body is pending.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    Response::new(Body::from_stream(stream::iter([half]).chain(end)))
}

async fn models(headers: HeaderMap) -> Response<Body> {
    if !has_key(&headers) {
        let (status, body) = wrong_key();
        return reply(status, body.to_string());
    }
    let model = json!({"name": "models/gemini-3-pro-image", "version": "001",
        "supportedGenerationMethods": ["generateContent"]});
    reply(200, json!({"models": [model]}).to_string())
}
