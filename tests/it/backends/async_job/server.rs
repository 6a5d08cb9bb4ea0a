//! Shared by all fakes of submit-and-poll upstreams: jobs, scenarios and images. The wire format of each service is in
//! [`super::services`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{
        images,
        upstream::{Reply, image},
    },
};

/// The key it requires.
pub const KEY: &str = "sk-fake-7f3a9c";

/// How a service is addressed.
#[derive(Clone, Copy)]
pub struct Service {
    /// The name of the built-in profile.
    pub profile: &'static str,
    /// The path behind the fake's address.
    pub base: &'static str,
    pub model: &'static str,
    /// Answers one call as the service does.
    pub answer: fn(&Server, &Call) -> Reply,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// Method and path segments, for matching.
    pub fn line(&self) -> (&str, Vec<&str>) {
        let steps = self.path.split('/').filter(|step| !step.is_empty());
        (self.method.as_str(), steps.collect())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the call has the right bearer token.
    pub fn bearer(&self) -> bool {
        self.header("authorization") == Some(&format!("Bearer {KEY}"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Queued,
    Running,
    Done,
    Refused,
    Failed,
}

#[derive(Clone, Debug)]
struct Begun {
    id: String,
    n: usize,
    looks: usize,
    fingerprint: Option<Bytes>,
}

#[derive(Default)]
struct ServerState {
    scenario: Option<Scenario>,
    begun: Vec<Begun>,
    asked: usize,
    inputs: Vec<Vec<u8>>,
    cancelled: Vec<String>,
    uploads: HashMap<String, Vec<u8>>,
    repeat_keys: HashMap<String, String>,
    submits: VecDeque<Reply>,
    looks: VecDeque<Reply>,
    results: VecDeque<Reply>,
    calls: Vec<Call>,
}

/// The state and address of a fake.
pub struct Server {
    pub url: String,
    state: Mutex<ServerState>,
}

/// A fake that listens on loopback until it is dropped.
pub struct FakeService {
    pub server: Arc<Server>,
    pub service: Service,
    _serving: JoinSet<()>,
}

impl FakeService {
    pub async fn start(service: Service) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            state: Mutex::default(),
        });
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable())
            .with_state((service, Arc::clone(&server)));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            server,
            service,
            _serving: serving,
        }
    }

    /// The settings with `more` in place of the defaults.
    pub fn settings_with(&self, more: &[(&str, &str)]) -> String {
        let profile = format!("{:?}", self.service.profile);
        let base_url = format!("\"{}{}\"", self.server.url, self.service.base);
        let key = format!("{KEY:?}");
        let mut settings = toml::Table::new();
        for (name, value) in [
            ("kind", "\"async_job\""),
            ("profile", &profile),
            ("protocol_file", "\"\""),
            ("base_url", &base_url),
            ("api_key", &key),
            ("download_hosts", "[]"),
            ("poll_interval_ms", "10"),
            ("native_side_px", "0"),
        ]
        .into_iter()
        .chain(more.iter().copied())
        {
            let one: toml::Table = format!("{name} = {value}").parse().unwrap();
            settings.extend(one);
        }
        settings.to_string()
    }
}

async fn answer(
    State((service, server)): State<(Service, Arc<Server>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let call = Call {
        method,
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    };
    server.state().calls.push(call.clone());
    let reply = match call.path.strip_prefix("/images/") {
        Some(name) => {
            let scripted = server.scripted_result();
            scripted.unwrap_or_else(|| image_named(name, &call))
        }
        None => (service.answer)(&server, &call),
    };
    reply.send().await
}

impl Server {
    fn state(&self) -> std::sync::MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }

    /// The current scenario.
    pub fn scenario(&self) -> Scenario {
        self.state().scenario.unwrap_or(Scenario::Generates)
    }

    /// Records a request; returns the scenario's answer if it does not depend on the request.
    pub fn ask(&self, inputs: Vec<Vec<u8>>) -> Option<Reply> {
        let mut state = self.state();
        state.asked += 1;
        state.inputs = inputs;
        state.submits.pop_front()
    }

    /// Accepts the request; returns the job's id.
    pub fn begin(&self, n: usize) -> String {
        let mut state = self.state();
        let id = format!("job_{}", state.begun.len() + 1);
        state.begun.push(Begun {
            id: id.clone(),
            n,
            looks: 0,
            fingerprint: None,
        });
        id
    }

    /// The id of the job that was created under this key, and whether the body is the same.
    pub fn repeated(&self, key: &str, body: &Bytes) -> Option<(String, bool)> {
        let state = self.state();
        let id = state.repeat_keys.get(key)?;
        let begun = state.begun.iter().find(|begun| begun.id == *id)?;
        Some((id.clone(), begun.fingerprint.as_ref() == Some(body)))
    }

    /// Records the job and body that were created under a key.
    pub fn remember(&self, key: &str, id: &str, body: &Bytes) {
        let mut state = self.state();
        state.repeat_keys.insert(key.to_owned(), id.to_owned());
        let begun = state.begun.iter_mut().find(|begun| begun.id == id);
        begun.unwrap().fingerprint = Some(body.clone());
    }

    /// The state of a job, which advances with each poll; `None`: there is no such job.
    pub fn look(&self, id: &str) -> Option<Result<Look, Reply>> {
        let scenario = self.scenario();
        let mut state = self.state();
        let scripted = state.looks.pop_front();
        let begun = state.begun.iter_mut().find(|begun| begun.id == id)?;
        if let Some(reply) = scripted {
            return Some(Err(reply));
        }
        begun.looks += 1;
        Some(Ok(match (begun.looks, scenario) {
            (1, _) => Look::Queued,
            (2, _) | (_, Scenario::Hangs) => Look::Running,
            (_, Scenario::Refuses) => Look::Refused,
            (_, Scenario::Fails) => Look::Failed,
            _ => Look::Done,
        }))
    }

    fn result(&self, id: &str) -> usize {
        let state = self.state();
        let begun = state.begun.iter().find(|begun| begun.id == id);
        match state.scenario {
            Some(Scenario::GeneratesNothing) => 0,
            _ => begun.map_or(0, |begun| begun.n),
        }
    }

    /// Links to the job's images.
    pub fn links(&self, id: &str) -> Vec<String> {
        let name = match self.scenario() {
            Scenario::BreaksOff => "broken",
            Scenario::GeneratesNoImage => "none",
            _ => "good",
        };
        let link = |i: usize| format!("{}/images/{name}-{i}.png", self.url);
        (0..self.result(id)).map(link).collect()
    }

    /// The job's images as base64.
    pub fn base64(&self, id: &str) -> Vec<String> {
        let bytes = |i: usize| match self.scenario() {
            Scenario::BreaksOff => images::png_of(1_000_000),
            Scenario::GeneratesNoImage => b"<html>no image</html>".to_vec(),
            _ => image(64, 32, u8::try_from(i).unwrap()),
        };
        let result = 0..self.result(id);
        let encode = |i| base64_simd::STANDARD.encode_to_string(bytes(i));
        result.map(encode).collect()
    }

    /// Stores an upload; returns its URL.
    pub fn keep(&self, bytes: Vec<u8>) -> String {
        let mut state = self.state();
        let url = format!("{}/f/image/{}-photo.png", self.url, state.uploads.len());
        state.uploads.insert(url.clone(), bytes);
        url
    }

    /// The bytes behind the URL of an upload.
    pub fn kept(&self, url: &str) -> Option<Vec<u8>> {
        self.state().uploads.get(url).cloned()
    }

    /// Records that a job was cancelled.
    pub fn cancel(&self, job: &str) {
        self.state().cancelled.push(job.to_owned());
    }

    /// Answers the next submit, the next poll, or the next fetch of a result with `reply`.
    pub fn next_submit(&self, reply: Reply) {
        self.state().submits.push_back(reply);
    }

    /// Answers the next poll with `reply`.
    pub fn next_look(&self, reply: Reply) {
        self.state().looks.push_back(reply);
    }

    /// Answers the next fetch of a result with `reply`.
    pub fn next_result(&self, reply: Reply) {
        self.state().results.push_back(reply);
    }

    /// The scripted answer to a fetch of a result, if any.
    pub fn scripted_result(&self) -> Option<Reply> {
        self.state().results.pop_front()
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }
}

/// Images are served only to requests without a key.
fn image_named(name: &str, call: &Call) -> Reply {
    for header in ["authorization", "x-key"] {
        assert_eq!(call.header(header), None, "a key came with {name}");
    }
    let (kind, rest) = name.split_once('-').unwrap();
    let index = rest.trim_end_matches(".png").parse().unwrap_or(0);
    let png = image(64, 32, index);
    match kind {
        "good" => Reply::bytes("image/png", png),
        "broken" => Reply::bytes("image/png", png).cut_at(20),
        "none" => Reply::bytes("text/html", b"<html>gone</html>".to_vec()),
        // A lasting link redirects to a temporary one.
        "lasting" => Reply::json(302, &json!({})).header("location", &format!("/images/{rest}")),
        _ => Reply::json(404, &json!({})),
    }
}

/// The bytes of a data URL, or of plain base64.
pub fn decoded(text: &str) -> Option<Vec<u8>> {
    let base64 = match text.strip_prefix("data:image/") {
        Some(rest) => rest.split_once(";base64,")?.1,
        None => text,
    };
    base64_simd::STANDARD.decode_to_vec(base64).ok()
}

/// The bytes of each item in a list.
pub fn all_decoded(list: &Value) -> Vec<Vec<u8>> {
    let texts = list.as_array().into_iter().flatten();
    let texts = texts.filter_map(Value::as_str);
    texts
        .map(|text| decoded(text).unwrap_or_default())
        .collect()
}

impl FakeUpstream for FakeService {
    fn settings(&self) -> String {
        self.settings_with(&[])
    }

    fn model(&self) -> String {
        self.service.model.to_owned()
    }

    fn play(&self, scenario: Scenario) {
        self.server.state().scenario = Some(scenario);
    }

    fn asked(&self) -> usize {
        self.server.state().asked
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.server.state().inputs.clone()
    }

    fn cancelled(&self) -> Vec<String> {
        self.server.state().cancelled.clone()
    }
}
