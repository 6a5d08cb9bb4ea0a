//! A fake of Gemini's API, as strict as the real one: it checks fields, ratios, sizes and limits, accepts both
//! alphabets of base64, and refuses with HTTP 200. The official SDK verifies it: see `tests/it/end_to_end/clients.rs`.

use serde_json::{Value, json};

use super::request::Request;
use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{
        fake_server::{Call, FakeServer, Protocol, Reply, Script},
        images,
    },
};

/// The key it requires.
pub const KEY: &str = "AIza-fake-5d20";
/// A prompt that its safety system refuses.
pub const REFUSED_PROMPT: &str = "something unsafe";

/// A fake that listens on loopback until it is dropped.
pub type Gemini = FakeServer<Server>;

/// The state of the fake.
#[derive(Default)]
pub struct Server {
    scenario: Scenario,
    script: Script,
    inputs: Vec<Vec<u8>>,
}

impl Gemini {
    pub async fn start() -> Self {
        Self::serving(|_| Server::default()).await
    }

    /// Sets the answer to the next call.
    pub fn next(&self, status: u16, body: &Value) {
        self.state().script.next(reply(status, body));
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
        self.state().scenario = scenario;
    }

    fn asked(&self) -> usize {
        self.calls_by("POST").len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.state().inputs.clone()
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

fn reply(status: u16, body: &Value) -> Reply {
    Reply::bytes("application/json; charset=UTF-8", body.to_string()).status(status)
}

/// The API reports a wrong key as an invalid argument.
fn wrong_key() -> Reply {
    let reason = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
    let message = "API key not valid. Please pass a valid API key.";
    reply(400, &error(400, "INVALID_ARGUMENT", message, &reason))
}

impl Protocol for Server {
    fn answer(&mut self, call: &Call) -> Reply {
        let (method, line) = call.line();
        let has_key = call.header("x-goog-api-key") == Some(KEY);
        match (method, line.as_slice()) {
            ("POST", ["v1beta", "models", name]) => match self.script.take() {
                Some(scripted) => scripted,
                None if has_key => self.generate(name, call),
                None => wrong_key(),
            },
            ("GET", ["v1beta", "models"]) if has_key => {
                let model = json!({"name": "models/gemini-3-pro-image", "version": "001",
                    "supportedGenerationMethods": ["generateContent"]});
                reply(200, &json!({"models": [model]}))
            }
            ("GET", ["v1beta", "models"]) => wrong_key(),
            _ => Reply::empty(404),
        }
    }
}

impl Server {
    fn generate(&mut self, name: &str, call: &Call) -> Reply {
        match Request::read(name, &call.json()) {
            Ok(request) => {
                self.inputs.clone_from(&request.images);
                play(self.scenario, &request)
            }
            Err(message) => reply(400, &error(400, "INVALID_ARGUMENT", &message, &json!([]))),
        }
    }
}

fn play(scenario: Scenario, request: &Request) -> Reply {
    let fails =
        |code, status: &str, details: &Value| reply(code, &error(code, status, "No.", details));
    let answers = |parts: &[Value]| reply(200, &answer(parts, "STOP"));
    let generates = || {
        let (width, height) = request.size;
        let mut result = image(&images::grey(width, height, 0));
        result["thoughtSignature"] = "c2lnbmF0dXJl".into();
        answers(&[result])
    };
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
        Scenario::Hangs => Reply::never(),
        Scenario::BreaksOff => generates().cut_in_half(),
        Scenario::GeneratesNothing => answers(&[json!({"text": "I can not."})]),
        Scenario::GeneratesNoImage => answers(&[image(b"<html>It works!</html>")]),
        Scenario::Generates if request.prompt != REFUSED_PROMPT => generates(),
        Scenario::Generates | Scenario::Refuses => reply(
            200,
            &json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
                "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5},
                "modelVersion": "gemini-3-pro-image"}),
        ),
    }
}
