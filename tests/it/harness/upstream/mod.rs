//! A fake upstream with OpenAI's Images API. It is as strict as the real one where that matters: it requires its key,
//! refuses unknown parameters, and answers only with base64. It also speaks the dialects of copies of that API: see
//! [`Dialect`]. Any call can get another answer: see [`Reply`].

mod dialect;
mod openai;

use serde_json::json;

pub use super::{
    fake_server::{Call, File, Gate, Reply, closed_gate},
    images::grey as image,
};
pub use dialect::Dialect;

use super::fake_server::{FakeServer, Protocol, Script};

/// The key it requires.
pub const KEY: &str = "sk-fake-7f3a9c";
/// A prompt that its safety system refuses.
pub const REFUSED_PROMPT: &str = "something unsafe";

/// A fake upstream that listens on loopback until it is dropped.
pub type Upstream = FakeServer<ImagesApi>;

/// The state of the fake.
#[derive(Default)]
pub struct ImagesApi {
    pub dialect: Dialect,
    script: Script,
}

impl Upstream {
    /// Starts a fake of OpenAI itself.
    pub async fn start() -> Self {
        Self::speaking(Dialect::Openai).await
    }

    /// Starts a fake that speaks a dialect.
    pub async fn speaking(dialect: Dialect) -> Self {
        let script = Script::default();
        Self::serving(|_| ImagesApi { dialect, script }).await
    }

    /// The backend's settings for it, as TOML below `[backends.NAME]`; `more` is appended.
    pub fn settings(&self, more: &str) -> String {
        format!("{}\n{more}\n", self.state().dialect.settings(&self.url))
    }

    /// Settings of a gateway whose only model uses it; `model` is added to the model's settings.
    pub fn gateway(&self, model: &str) -> String {
        let backend = self.settings("");
        format!("[backends.up]\n{backend}[models.gpt-image-2]\nroutes = [\"up\"]\n{model}\n")
    }

    /// Answers the next request that has no reply yet with `reply`. Without any reply, images are generated.
    pub fn next(&self, reply: Reply) {
        self.state().script.next(reply);
    }

    /// Holds the next `replies`, of one small image each, until the gate releases them.
    pub fn hold(&self, replies: usize) -> Gate {
        let gate = closed_gate();
        for _ in 0..replies {
            self.next(Reply::an_image().held_by(&gate));
        }
        gate
    }

    /// Answers every request like this from now on, except those with a reply of their own. `None`: generates again.
    pub fn always(&self, reply: Option<Reply>) {
        self.state().script.always(reply);
    }
}

impl Protocol for ImagesApi {
    fn answer(&mut self, call: &Call) -> Reply {
        let (method, line) = call.line();
        match (method, line.as_slice()) {
            (
                "POST",
                ["v1", "images", _]
                | ["openai", "v1", "images", _]
                | ["openai", "deployments", _, "images", _],
            ) => self.generate(call),
            ("GET", ["v1" | "openai", "models"] | ["openai", "v1", "models"]) => self.models(call),
            ("GET", ["files", name]) => file(name),
            _ => Reply::empty(404),
        }
    }
}

impl ImagesApi {
    fn generate(&mut self, call: &Call) -> Reply {
        if let Some(reply) = self.script.take() {
            return reply;
        }
        match self.dialect.check(call) {
            Ok(()) => self.dialect.result(call),
            Err(refusal) => refusal,
        }
    }

    fn models(&self, call: &Call) -> Reply {
        if let Err(refusal) = self.dialect.check_key(call) {
            return refusal;
        }
        let model =
            json!({"id": "gpt-image-2", "object": "model", "created": 1, "owned_by": "fake"});
        Reply::json(200, &json!({"object": "list", "data": [model]}))
    }
}

/// The images that links in answers name. They require no key.
fn file(name: &str) -> Reply {
    let moved = Reply::json(302, &json!({}));
    match name {
        "image.png" => Reply::bytes("image/png", image(64, 64, 0)),
        "moved.png" => moved.header("location", "/files/image.png"),
        "away.png" => moved.header("location", "https://elsewhere.test/1.png"),
        "round.png" => moved.header("location", "round.png"),
        "nowhere.png" => moved,
        "broken.png" => Reply::error(500, "server_error", "disk on fire"),
        _ => Reply::error(404, "not_found", "no such file"),
    }
}
