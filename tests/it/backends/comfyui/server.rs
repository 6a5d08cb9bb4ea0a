//! A fake ComfyUI server behind a proxy that requires a key, written after ComfyUI's `server.py`. It runs one prompt at
//! a time and forgets all prompts at a restart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use axum::body::Bytes;
use easel::ids;
use serde_json::{Map, Value, json};

use super::nodes::{self, Graph};
use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{
        fake_server::{Call, FakeServer, Protocol, Reply},
        images,
    },
};

/// The key that the proxy requires.
pub const KEY: &str = "proxy-key-31b7";

/// A fake that listens on loopback until it is dropped.
pub type Comfyui = FakeServer<Server>;

/// The state of the fake.
#[derive(Default)]
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
    pub cancelled: Vec<String>,
    /// The prompts that were looked up in the history.
    pub polled: BTreeSet<String>,
    /// The uploaded files by name.
    pub files: BTreeMap<String, Bytes>,
    prompts: Vec<Prompt>,
    /// Images by the graph that generated them.
    cache: HashMap<String, Value>,
    inputs: Vec<Vec<u8>>,
}

struct Prompt {
    id: String,
    nodes: Map<String, Value>,
    /// Its entry in the history.
    ended: Option<Value>,
}

impl Comfyui {
    pub async fn start() -> Self {
        Self::serving(|_| Server::default()).await
    }

    /// The bodies of `/prompt`, in order.
    pub fn submitted(&self) -> Vec<Value> {
        self.calls_to("/prompt").iter().map(Call::json).collect()
    }

    /// Returns once the newest prompt, which must be the `count`th, is polled.
    pub async fn wait_for_polls(&self, count: usize) {
        let polled = || {
            let server = self.state();
            let newest = server.prompts.last();
            server.prompts.len() == count
                && newest.is_some_and(|prompt| server.polled.contains(&prompt.id))
        };
        while !polled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The number of prompts it knows.
    pub fn known(&self) -> usize {
        self.state().prompts.len()
    }

    /// Forgets every prompt, as a restart does.
    pub fn restart(&self) {
        self.state().prompts.clear();
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
        self.state().scenario = scenario;
    }

    /// ComfyUI has no safety system.
    fn plays(&self, scenario: Scenario) -> bool {
        scenario != Scenario::Refuses
    }

    fn asked(&self) -> usize {
        self.submitted().len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.state().inputs.clone()
    }

    fn cancelled(&self) -> Vec<String> {
        self.state().cancelled.clone()
    }
}

impl Protocol for Server {
    fn answer(&mut self, call: &Call) -> Reply {
        if !call.has_bearer(KEY) || self.scenario == Scenario::KnowsNoKey {
            return Reply::empty(401);
        }
        let (method, line) = call.line();
        match (method, line.as_slice()) {
            ("POST", ["upload", "image"]) => self.upload(call),
            ("POST", ["prompt"]) => self.submit(call),
            ("GET", ["history", id]) => self.history(id),
            ("GET", ["queue"]) => self.queue(),
            ("POST", ["queue"]) => self.change_queue(call),
            ("POST", ["interrupt"]) => self.interrupt(call),
            ("GET", ["view"]) => self.view(call),
            ("GET", ["system_stats"]) => {
                let body = json!({"system": {"comfyui_version": "0.3.64"}, "devices": []});
                Reply::json(200, &body)
            }
            _ => Reply::empty(404),
        }
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
                let bytes = images::grey(side(batch.width), side(batch.height), shade);
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

    fn upload(&mut self, call: &Call) -> Reply {
        let text = |name: &str| {
            call.fields
                .get(name)
                .map_or("", |text| text.as_str().unwrap())
        };
        let (folder, subfolder) = (text("type"), text("subfolder"));
        let Some(image) = call.files.iter().find(|file| file.name == "image") else {
            return Reply::empty(400);
        };
        let name = &image.filename;
        if !matches!(folder, "input" | "temp") || name.contains("..") || name.contains('/') {
            return Reply::empty(400);
        }
        let path = format!("{subfolder}/{name} [{folder}]");
        self.files.insert(path, image.bytes.clone());
        let body = json!({"name": name, "subfolder": subfolder, "type": folder});
        Reply::json(200, &body)
    }

    fn submit(&mut self, call: &Call) -> Reply {
        if self.scenario == Scenario::LimitsRate {
            return Reply::empty(429).header("retry-after", "7");
        }
        let mut nodes = call.fields["prompt"].as_object().unwrap().clone();
        if self.scenario == Scenario::FindsInvalid {
            nodes["4"]["inputs"]["ckpt_name"] = "not-there.safetensors".into();
        }
        let mut id = call.fields["prompt_id"].as_str().unwrap().to_owned();
        if self.ignores_ids {
            id = ids::credential_id().to_string();
        } else if id.len() != 36 || id != id.to_lowercase() {
            let error = json!({"type": "invalid_prompt_id",
                "message": "prompt_id must be a valid UUID", "details": "", "extra_info": {}});
            return Reply::json(400, &json!({"error": error, "node_errors": {}}));
        }
        match self.take(&id, &nodes) {
            Ok(()) => {
                let body = json!({"prompt_id": id, "number": 1, "node_errors": {}});
                Reply::json(200, &body)
            }
            Err(refusal) => Reply::json(400, &refusal),
        }
    }

    fn history(&mut self, id: &str) -> Reply {
        if self.polls_to_fail > 0 {
            self.polls_to_fail -= 1;
            return Reply::empty(502);
        }
        self.work();
        self.polled.insert(id.to_owned());
        let ended = self.prompts.iter().find(|prompt| prompt.id == id);
        match ended.and_then(|prompt| prompt.ended.as_ref()) {
            Some(entry) => Reply::json(200, &json!({id: entry})),
            None => Reply::json(200, &json!({})),
        }
    }

    fn queue(&self) -> Reply {
        if let Some(queue) = &self.queue {
            return Reply::bytes("application/json", queue.clone());
        }
        let entry = |prompt: &Prompt| json!([1, prompt.id, prompt.nodes, {}, ["9"]]);
        let all: Vec<Value> = self.waiting().map(entry).collect();
        let (running, pending) = all.split_at(all.len().min(1));
        let body = json!({"queue_running": running, "queue_pending": pending});
        Reply::json(200, &body)
    }

    fn change_queue(&mut self, call: &Call) -> Reply {
        for id in call.fields["delete"].as_array().unwrap() {
            let queued = self.waiting().skip(1).any(|prompt| prompt.id == *id);
            if queued {
                self.prompts.retain(|prompt| prompt.id != *id);
                self.cancelled.push(id.as_str().unwrap().to_owned());
            }
        }
        Reply::empty(200)
    }

    /// Stops any running prompt if the request names none.
    fn interrupt(&mut self, call: &Call) -> Reply {
        let named = call.fields.get("prompt_id").filter(|_| !self.ignores_ids);
        let mut prompts = self.prompts.iter_mut();
        let running = prompts.find(|prompt| prompt.ended.is_none());
        if let Some(running) = running
            && named.is_none_or(|id| id.is_null() || *id == *running.id)
        {
            let messages =
                json!([["execution_interrupted", {"prompt_id": running.id, "node_id": "3"}]]);
            let status = json!({"status_str": "error", "completed": false, "messages": messages});
            running.ended = Some(json!({"outputs": {}, "status": status}));
            self.cancelled.push(running.id.clone());
        }
        Reply::empty(200)
    }

    fn view(&self, call: &Call) -> Reply {
        let name = call.in_query("filename");
        if name.starts_with('/') || name.contains("..") {
            return Reply::empty(400);
        }
        let path = format!("{name} [{}]", call.in_query("type"));
        let Some(bytes) = self.files.get(&path) else {
            return Reply::empty(404);
        };
        let image = Reply::bytes("image/png", bytes.clone());
        match self.scenario {
            Scenario::GeneratesNoImage => Reply::bytes("text/html", "<html>Not Found</html>"),
            Scenario::BreaksOff => image.cut_in_half(),
            _ => image,
        }
    }
}
