//! A fake ComfyUI server behind a proxy that requires a key, written after ComfyUI's `server.py`. It runs one prompt at
//! a time and forgets all prompts at a restart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, State},
    http::{HeaderMap, Response, StatusCode, Uri, header},
    routing::{get, post},
};
use easel::ids;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::nodes::{self, Graph};
use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{images, upstream::image},
};

/// The key that the proxy requires.
pub const KEY: &str = "proxy-key-31b7";

/// A fake that listens on loopback until it is dropped.
pub struct Comfyui {
    pub url: String,
    state: Arc<Mutex<Server>>,
    _serving: JoinSet<()>,
}

/// The state of the fake.
pub struct Server {
    pub scenario: Scenario,
    /// Creates its own ids, as servers did before clients could choose them.
    pub ignores_ids: bool,
    /// This many of the next polls fail.
    pub polls_to_fail: u32,
    /// Replaces the answer to `/queue`.
    pub queue: Option<Bytes>,
    /// Replaces the images in the history.
    pub images: Option<Value>,
    /// The bodies of `/prompt`, in order.
    pub submitted: Vec<Value>,
    pub cancelled: Vec<String>,
    /// The prompts that were looked up in the history.
    pub polled: BTreeSet<String>,
    /// The queries of `/view`.
    pub views: Vec<HashMap<String, String>>,
    /// The uploaded files by name.
    pub files: BTreeMap<String, Bytes>,
    prompts: Vec<Prompt>,
    /// Images by the graph that generated them.
    cache: HashMap<String, Value>,
    inputs: Vec<Vec<u8>>,
    asked: usize,
}

struct Prompt {
    id: String,
    nodes: Map<String, Value>,
    /// Its entry in the history.
    ended: Option<Value>,
}

type Shared = State<Arc<Mutex<Server>>>;

impl Comfyui {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Server {
            scenario: Scenario::Generates,
            ignores_ids: false,
            polls_to_fail: 0,
            queue: None,
            images: None,
            submitted: Vec::new(),
            cancelled: Vec::new(),
            polled: BTreeSet::new(),
            views: Vec::new(),
            files: BTreeMap::new(),
            prompts: Vec::new(),
            cache: HashMap::new(),
            inputs: Vec::new(),
            asked: 0,
        }));
        let router = Router::new()
            .route("/upload/image", post(upload))
            .route("/prompt", post(submit))
            .route("/history/{id}", get(history))
            .route("/queue", get(queue).post(change_queue))
            .route("/interrupt", post(interrupt))
            .route("/view", get(view))
            .route("/system_stats", get(system_stats))
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

    /// Returns once the newest prompt, which must be the `count`th, is polled.
    pub async fn wait_for_polls(&self, count: usize) {
        let polled = || {
            let server = self.server();
            let newest = server.prompts.last();
            server.prompts.len() == count
                && newest.is_some_and(|prompt| server.polled.contains(&prompt.id))
        };
        while !polled() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// The number of prompts it knows.
    pub fn known(&self) -> usize {
        self.server().prompts.len()
    }

    /// Forgets every prompt, as a restart does.
    pub fn restart(&self) {
        self.server().prompts.clear();
    }
}

impl FakeUpstream for Comfyui {
    /// The default settings, with the fake's address.
    fn settings(&self) -> String {
        let defaults: toml::Table = include_str!("../../../../config/easel.toml")
            .parse()
            .unwrap();
        let mut settings = defaults["backends"]["comfyui"].as_table().unwrap().clone();
        settings.insert("base_url".to_owned(), self.url.clone().into());
        settings.insert("api_key".to_owned(), KEY.into());
        settings.insert("poll_interval_ms".to_owned(), 10.into());
        settings.to_string()
    }

    fn model(&self) -> String {
        nodes::CHECKPOINT.to_owned()
    }

    fn play(&self, scenario: Scenario) {
        self.server().scenario = scenario;
    }

    /// ComfyUI has no safety system.
    fn plays(&self, scenario: Scenario) -> bool {
        scenario != Scenario::Refuses
    }

    fn asked(&self) -> usize {
        self.server().asked
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.server().inputs.clone()
    }

    fn cancelled(&self) -> Vec<String> {
        self.server().cancelled.clone()
    }
}

impl Server {
    fn take(&mut self, id: &str, nodes: &Map<String, Value>) -> Result<(), Value> {
        let has_file = |name: &str| self.files.contains_key(name);
        let graph = Graph {
            nodes,
            has_file: &has_file,
        };
        graph.validate()?;
        let files = graph.files();
        self.inputs = files
            .iter()
            .map(|name| self.files[*name].to_vec())
            .collect();
        self.prompts.push(Prompt {
            id: id.to_owned(),
            nodes: nodes.clone(),
            ended: None,
        });
        Ok(())
    }

    /// The prompts that have not ended, in order; the first one runs.
    fn waiting(&self) -> impl Iterator<Item = &Prompt> {
        self.prompts.iter().filter(|prompt| prompt.ended.is_none())
    }

    /// Ends every prompt as the scenario demands.
    fn work(&mut self) {
        let error = |messages: Value| {
            let status = json!({"status_str": "error", "completed": false, "messages": messages});
            json!({"outputs": {}, "status": status, "meta": {}})
        };
        let mut prompts = std::mem::take(&mut self.prompts);
        for prompt in prompts.iter_mut().filter(|prompt| prompt.ended.is_none()) {
            prompt.ended = match self.scenario {
                Scenario::Hangs => None,
                Scenario::Fails => Some(error(json!([["execution_error", {
                    "prompt_id": prompt.id, "node_id": "3", "node_type": "KSampler",
                    "executed": [], "exception_type": "torch.OutOfMemoryError", "traceback": [],
                    "exception_message": "Allocation on device 0 would exceed allowed memory."}]]))),
                _ => Some(self.generate(&prompt.nodes)),
            };
        }
        self.prompts = prompts;
    }

    fn generate(&mut self, nodes: &Map<String, Value>) -> Value {
        let mut outputs = match self.cache.get(&json!(nodes).to_string()) {
            Some(cached) => cached.clone(),
            None => self.paint(nodes),
        };
        if self.scenario == Scenario::GeneratesNothing {
            outputs = json!({});
        }
        if let Some(images) = &self.images {
            outputs = json!({"9": {"images": images}});
        }
        let status = json!({"status_str": "success", "completed": true, "messages": []});
        json!({"prompt": [0, "id", nodes, {}, ["9"]], "outputs": outputs, "status": status})
    }

    fn paint(&mut self, nodes: &Map<String, Value>) -> Value {
        let graph = Graph {
            nodes,
            has_file: &|_| true,
        };
        let seed = nodes["3"]["inputs"]["seed"].as_u64().unwrap();
        let mut outputs = Map::new();
        for node in graph.output_nodes() {
            let batch = graph.batch(node);
            let mut images = Vec::new();
            for index in 0..batch.count {
                let name = format!("ComfyUI_temp_{:05}_.png", self.files.len());
                let shade = (seed + index).to_le_bytes()[0];
                let side = |side: u64| u32::try_from(side).unwrap();
                let bytes = image(side(batch.width), side(batch.height), shade);
                // As ComfyUI does by default.
                let bytes = images::with_text(&bytes, &json!(nodes).to_string());
                self.files.insert(format!("{name} [temp]"), bytes.into());
                images.push(json!({"filename": name, "subfolder": "", "type": "temp"}));
            }
            outputs.insert(node.to_owned(), json!({"images": images}));
        }
        let outputs = Value::Object(outputs);
        self.cache.insert(json!(nodes).to_string(), outputs.clone());
        outputs
    }
}

fn answer(status: u16, body: &Value) -> Response<Body> {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    let response = response.header(header::CONTENT_TYPE, "application/json");
    response.body(Body::from(body.to_string())).unwrap()
}

fn empty(status: u16) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder()
        .status(status)
        .body(Body::empty())
        .unwrap()
}

/// The proxy: checks the key and the rate limit.
fn enter<'a>(state: &'a Shared, headers: &HeaderMap) -> Result<MutexGuard<'a, Server>, u16> {
    let server = state.0.lock().unwrap();
    let given = headers.get(header::AUTHORIZATION);
    let known = given.is_some_and(|given| *given == format!("Bearer {KEY}"));
    if !known || server.scenario == Scenario::KnowsNoKey {
        return Err(401);
    }
    Ok(server)
}

async fn upload(state: Shared, headers: HeaderMap, body: Bytes) -> Response<Body> {
    if let Err(status) = enter(&state, &headers) {
        return empty(status);
    }
    let content_type = headers[header::CONTENT_TYPE].to_str().unwrap();
    let boundary = multer::parse_boundary(content_type).unwrap();
    let body = stream::iter([Ok::<_, std::io::Error>(body)]);
    let mut form = multer::Multipart::new(body, boundary);
    let (mut texts, mut image) = (HashMap::new(), None);
    while let Some(part) = form.next_field().await.unwrap() {
        match part.file_name().map(str::to_owned) {
            Some(name) if part.name() == Some("image") => {
                image = Some((name, part.bytes().await.unwrap()));
            }
            _ => {
                let name = part.name().unwrap().to_owned();
                texts.insert(name, part.text().await.unwrap());
            }
        }
    }
    let text = |name: &str| texts.get(name).cloned().unwrap_or_default();
    let (folder, subfolder) = (text("type"), text("subfolder"));
    let Some((name, bytes)) = image else {
        return empty(400);
    };
    if !matches!(folder.as_str(), "input" | "temp") || name.contains("..") || name.contains('/') {
        return empty(400);
    }
    let path = format!("{subfolder}/{name} [{folder}]");
    state.0.lock().unwrap().files.insert(path, bytes);
    answer(
        200,
        &json!({"name": name, "subfolder": subfolder, "type": folder}),
    )
}

async fn submit(state: Shared, headers: HeaderMap, body: Bytes) -> Response<Body> {
    state.0.lock().unwrap().asked += 1;
    let mut server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    if server.scenario == Scenario::LimitsRate {
        let mut limited = empty(429);
        limited.headers_mut().insert(header::RETRY_AFTER, 7.into());
        return limited;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    server.submitted.push(body.clone());
    let mut nodes = body["prompt"].as_object().unwrap().clone();
    if server.scenario == Scenario::FindsInvalid {
        nodes["4"]["inputs"]["ckpt_name"] = "not-there.safetensors".into();
    }
    let mut id = body["prompt_id"].as_str().unwrap().to_owned();
    if server.ignores_ids {
        id = ids::credential_id().to_string();
    } else if id.len() != 36 || id != id.to_lowercase() {
        let error = json!({"type": "invalid_prompt_id", "message": "prompt_id must be a valid UUID",
            "details": "", "extra_info": {}});
        return answer(400, &json!({"error": error, "node_errors": {}}));
    }
    match server.take(&id, &nodes) {
        Ok(()) => answer(
            200,
            &json!({"prompt_id": id, "number": 1, "node_errors": {}}),
        ),
        Err(refusal) => answer(400, &refusal),
    }
}

async fn history(state: Shared, headers: HeaderMap, uri: Uri) -> Response<Body> {
    let mut server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    if server.polls_to_fail > 0 {
        server.polls_to_fail -= 1;
        return empty(502);
    }
    server.work();
    let id = uri.path().rsplit('/').next().unwrap();
    server.polled.insert(id.to_owned());
    let ended = server.prompts.iter().find(|prompt| prompt.id == id);
    match ended.and_then(|prompt| prompt.ended.clone()) {
        Some(entry) => answer(200, &json!({id: entry})),
        None => answer(200, &json!({})),
    }
}

async fn queue(state: Shared, headers: HeaderMap) -> Response<Body> {
    let server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    if let Some(queue) = &server.queue {
        return Response::new(Body::from(queue.clone()));
    }
    let entry = |prompt: &Prompt| json!([1, prompt.id, prompt.nodes, {}, ["9"]]);
    let all: Vec<Value> = server.waiting().map(entry).collect();
    let (running, pending) = all.split_at(all.len().min(1));
    answer(
        200,
        &json!({"queue_running": running, "queue_pending": pending}),
    )
}

async fn change_queue(state: Shared, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    let body: Value = serde_json::from_slice(&body).unwrap();
    for id in body["delete"].as_array().unwrap() {
        let queued = server.waiting().skip(1).any(|prompt| prompt.id == *id);
        if queued {
            server.prompts.retain(|prompt| prompt.id != *id);
            server.cancelled.push(id.as_str().unwrap().to_owned());
        }
    }
    empty(200)
}

/// Stops any running prompt if the request names none.
async fn interrupt(state: Shared, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let ignores_ids = server.ignores_ids;
    let Some(running) = server
        .prompts
        .iter_mut()
        .find(|prompt| prompt.ended.is_none())
    else {
        return empty(200);
    };
    if ignores_ids || body["prompt_id"].is_null() || body["prompt_id"] == running.id.as_str() {
        let messages =
            json!([["execution_interrupted", {"prompt_id": running.id, "node_id": "3"}]]);
        let status = json!({"status_str": "error", "completed": false, "messages": messages});
        running.ended = Some(json!({"outputs": {}, "status": status}));
        let id = running.id.clone();
        server.cancelled.push(id);
    }
    empty(200)
}

async fn view(
    state: Shared,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response<Body> {
    let mut server = match enter(&state, &headers) {
        Ok(server) => server,
        Err(status) => return empty(status),
    };
    server.views.push(query.clone());
    if query["filename"].starts_with('/') || query["filename"].contains("..") {
        return empty(400);
    }
    let path = format!("{} [{}]", query["filename"], query["type"]);
    let Some(bytes) = server.files.get(&path).cloned() else {
        return empty(404);
    };
    let body = match server.scenario {
        Scenario::GeneratesNoImage => Body::from("<html>Not Found</html>"),
        Scenario::BreaksOff => {
            let half = Ok(bytes.slice(..bytes.len() / 2));
            let end = stream::once(async {
                // Buffered bytes are sent while the body is pending.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            });
            Body::from_stream(stream::iter([half]).chain(end))
        }
        _ => Body::from(bytes),
    };
    Response::new(body)
}

async fn system_stats(state: Shared, headers: HeaderMap) -> Response<Body> {
    match enter(&state, &headers) {
        Ok(_) => answer(
            200,
            &json!({"system": {"comfyui_version": "0.3.64"}, "devices": []}),
        ),
        Err(status) => empty(status),
    }
}
