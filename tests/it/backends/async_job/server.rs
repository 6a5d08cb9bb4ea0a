//! Shared by all fakes of submit-and-poll upstreams: jobs, scenarios and images. The wire format of each service is in
//! [`super::services`].

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};

use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{
        fake_server::{Call, FakeServer, Protocol, Reply},
        images,
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
    pub answer: fn(&mut Server, &Call) -> Reply,
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

struct Begun {
    id: String,
    n: usize,
    looks: usize,
}

/// A fake that listens on loopback until it is dropped.
pub type FakeService = FakeServer<Server>;

/// The state of a fake.
pub struct Server {
    pub service: Service,
    pub url: String,
    pub scenario: Scenario,
    begun: Vec<Begun>,
    asked: usize,
    inputs: Vec<Vec<u8>>,
    cancelled: Vec<String>,
    uploads: HashMap<String, Vec<u8>>,
    /// The body and the job of each key for repeats.
    repeatable: HashMap<String, (Value, String)>,
    submits: VecDeque<Reply>,
    looks: VecDeque<Reply>,
    results: VecDeque<Reply>,
}

impl FakeService {
    pub async fn start(service: Service) -> Self {
        Self::serving(|url| Server {
            service,
            url: url.to_owned(),
            scenario: Scenario::Generates,
            begun: Vec::new(),
            asked: 0,
            inputs: Vec::new(),
            cancelled: Vec::new(),
            uploads: HashMap::new(),
            repeatable: HashMap::new(),
            submits: VecDeque::new(),
            looks: VecDeque::new(),
            results: VecDeque::new(),
        })
        .await
    }

    /// Answers the next submit with `reply`.
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

    /// The settings with `more` in place of the defaults.
    pub fn settings_with(&self, more: &[(&str, &str)]) -> String {
        let service = self.state().service;
        let profile = format!("{:?}", service.profile);
        let base_url = format!("\"{}{}\"", self.url, service.base);
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

impl Protocol for Server {
    fn answer(&mut self, call: &Call) -> Reply {
        match call.path.strip_prefix("/images/") {
            Some(name) => self
                .scripted_result()
                .unwrap_or_else(|| image_named(name, call)),
            None => (self.service.answer)(self, call),
        }
    }
}

impl Server {
    /// Records a request; returns the scripted answer to it, if any.
    pub fn ask(&mut self, inputs: Vec<Vec<u8>>) -> Option<Reply> {
        self.asked += 1;
        self.inputs = inputs;
        self.submits.pop_front()
    }

    /// Accepts the request; returns the job's id.
    pub fn begin(&mut self, n: usize) -> String {
        let id = format!("job_{}", self.begun.len() + 1);
        self.begun.push(Begun {
            id: id.clone(),
            n,
            looks: 0,
        });
        id
    }

    /// The id of the job that was created under this key, and whether the body is the same.
    pub fn repeated(&self, key: &str, body: &Value) -> Option<(String, bool)> {
        let (known, id) = self.repeatable.get(key)?;
        Some((id.clone(), known == body))
    }

    /// Records the job and body that were created under a key.
    pub fn remember(&mut self, key: &str, id: &str, body: Value) {
        self.repeatable
            .insert(key.to_owned(), (body, id.to_owned()));
    }

    /// The state of a job, which advances with each poll; `None`: there is no such job.
    pub fn look(&mut self, id: &str) -> Option<Result<Look, Reply>> {
        let scripted = self.looks.pop_front();
        let begun = self.begun.iter_mut().find(|begun| begun.id == id)?;
        if let Some(reply) = scripted {
            return Some(Err(reply));
        }
        begun.looks += 1;
        Some(Ok(match (begun.looks, self.scenario) {
            (1, _) => Look::Queued,
            (2, _) | (_, Scenario::Hangs) => Look::Running,
            (_, Scenario::Refuses) => Look::Refused,
            (_, Scenario::Fails) => Look::Failed,
            _ => Look::Done,
        }))
    }

    /// The number of images that the job generates.
    fn result(&self, id: &str) -> usize {
        let begun = self.begun.iter().find(|begun| begun.id == id);
        match self.scenario {
            Scenario::GeneratesNothing => 0,
            _ => begun.map_or(0, |begun| begun.n),
        }
    }

    /// Links to the job's images.
    pub fn links(&self, id: &str) -> Vec<String> {
        let name = match self.scenario {
            Scenario::BreaksOff => "broken",
            Scenario::GeneratesNoImage => "none",
            _ => "good",
        };
        let link = |i: usize| format!("{}/images/{name}-{i}.png", self.url);
        (0..self.result(id)).map(link).collect()
    }

    /// The job's images as base64.
    pub fn base64(&self, id: &str) -> Vec<String> {
        let bytes = |i: usize| match self.scenario {
            Scenario::BreaksOff => images::png_of(1_000_000),
            Scenario::GeneratesNoImage => b"<html>no image</html>".to_vec(),
            _ => images::grey(64, 32, u8::try_from(i).unwrap()),
        };
        let result = 0..self.result(id);
        let encode = |i| base64_simd::STANDARD.encode_to_string(bytes(i));
        result.map(encode).collect()
    }

    /// Stores an upload; returns its URL.
    pub fn keep(&mut self, bytes: Vec<u8>) -> String {
        let url = format!("{}/f/image/{}-photo.png", self.url, self.uploads.len());
        self.uploads.insert(url.clone(), bytes);
        url
    }

    /// The bytes behind the URL of an upload.
    pub fn kept(&self, url: &str) -> Option<Vec<u8>> {
        self.uploads.get(url).cloned()
    }

    /// Records that a job was cancelled.
    pub fn cancel(&mut self, job: &str) {
        self.cancelled.push(job.to_owned());
    }

    /// The scripted answer to a fetch of a result, if any.
    pub fn scripted_result(&mut self) -> Option<Reply> {
        self.results.pop_front()
    }
}

/// Images are served only to requests without a key.
fn image_named(name: &str, call: &Call) -> Reply {
    for header in ["authorization", "x-key"] {
        assert_eq!(call.header(header), None, "a key came with {name}");
    }
    let (kind, rest) = name.split_once('-').unwrap();
    let index = rest.trim_end_matches(".png").parse().unwrap_or(0);
    let png = images::grey(64, 32, index);
    match kind {
        "good" => Reply::bytes("image/png", png),
        "broken" => Reply::bytes("image/png", png).cut_at(20),
        "none" => Reply::bytes("text/html", "<html>gone</html>"),
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
        self.state().service.model.to_owned()
    }

    fn play(&self, scenario: Scenario) {
        self.state().scenario = scenario;
    }

    fn asked(&self) -> usize {
        self.state().asked
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        self.state().inputs.clone()
    }

    fn cancelled(&self) -> Vec<String> {
        self.state().cancelled.clone()
    }
}
