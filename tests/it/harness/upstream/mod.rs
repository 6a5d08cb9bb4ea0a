//! A fake upstream with OpenAI's Images API. It is as strict as the real one where that matters: it requires its key,
//! refuses unknown parameters, and answers only with base64. It also speaks the dialects of copies of that API: see
//! [`Dialect`]. Any call can get another answer: see [`Reply`].

mod dialect;
mod received;
mod reply;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Uri},
    response::Response,
    routing::{get, post},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

pub use dialect::Dialect;
pub use received::{File, Received};
pub use reply::{Gate, Reply, image, noise};

/// The key it requires.
pub const KEY: &str = "sk-fake-7f3a9c";
/// A prompt that its safety system refuses.
pub const REFUSED_PROMPT: &str = "something unsafe";

/// A fake upstream that listens on loopback until it is dropped.
pub struct Upstream {
    /// Its base URL, without `/v1`.
    pub url: String,
    state: Arc<Scripted>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Scripted {
    dialect: Dialect,
    replies: Mutex<VecDeque<Reply>>,
    /// The answer to every request that has no reply of its own.
    standing: Mutex<Option<Reply>>,
    received: Mutex<Vec<Received>>,
}

impl Upstream {
    /// Starts a fake of OpenAI itself.
    pub async fn start() -> Self {
        Self::speaking(Dialect::Openai).await
    }

    /// Starts a fake that speaks a dialect.
    pub async fn speaking(dialect: Dialect) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Scripted {
            dialect,
            ..Scripted::default()
        });
        let router = Router::new()
            .route("/v1/images/{operation}", post(generate))
            .route("/openai/v1/images/{operation}", post(generate))
            .route(
                "/openai/deployments/{model}/images/{operation}",
                post(generate),
            )
            .route("/v1/models", get(models))
            .route("/openai/v1/models", get(models))
            .route("/openai/models", get(models))
            .route("/files/{name}", get(file))
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

    /// The backend's settings for it, as TOML below `[backends.NAME]`; `more` is appended.
    pub fn settings(&self, more: &str) -> String {
        format!("{}\n{more}\n", self.state.dialect.settings(&self.url))
    }

    /// Settings of a gateway whose only model uses it; `model` is added to the model's settings.
    pub fn gateway(&self, model: &str) -> String {
        let backend = self.settings("");
        format!("[backends.up]\n{backend}[models.gpt-image-2]\nroutes = [\"up\"]\n{model}\n")
    }

    /// Answers the next request that has no reply yet with `reply`. Without any reply, images are generated.
    pub fn next(&self, reply: Reply) {
        self.state.replies.lock().unwrap().push_back(reply);
    }

    /// Answers every request like this from now on, except those with a reply of their own. `None`: generates again.
    pub fn always(&self, reply: Option<Reply>) {
        *self.state.standing.lock().unwrap() = reply;
    }

    /// Returns once this many calls have arrived, answered or not.
    pub async fn wait_for(&self, calls: usize) {
        let came = || self.state.received.lock().unwrap().len();
        for _ in 0..3_000 {
            if came() >= calls {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} calls came, not {calls}", came());
    }

    /// Every call so far, in order.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }
}

impl Scripted {
    fn note(&self, received: Received) {
        self.received.lock().unwrap().push(received);
    }
}

async fn generate(
    State(state): State<Arc<Scripted>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let received = Received::read(&uri, headers, body).await;
    let next = state.replies.lock().unwrap().pop_front();
    let reply = next.or_else(|| state.standing.lock().unwrap().clone());
    let reply = reply.unwrap_or_else(|| match state.dialect.check(&received) {
        Ok(()) => state.dialect.result(&received),
        Err(refusal) => refusal,
    });
    state.note(received);
    reply.send().await
}

async fn models(State(state): State<Arc<Scripted>>, uri: Uri, headers: HeaderMap) -> Response {
    let received = Received::read(&uri, headers, Bytes::new()).await;
    let model = json!({"id": "gpt-image-2", "object": "model", "created": 1, "owned_by": "fake"});
    let reply = match state.dialect.check_key(&received) {
        Ok(()) => Reply::json(200, &json!({"object": "list", "data": [model]})),
        Err(refusal) => refusal,
    };
    state.note(received);
    reply.send().await
}

/// Serves the images that links in answers name. Requires no key.
async fn file(State(state): State<Arc<Scripted>>, uri: Uri, headers: HeaderMap) -> Response {
    state.note(Received::read(&uri, headers, Bytes::new()).await);
    let reply = match uri.path() {
        "/files/image.png" => Reply::bytes("image/png", image(64, 64, 0)),
        "/files/moved.png" => Reply::json(302, &json!({})).header("location", "/files/image.png"),
        "/files/away.png" => {
            Reply::json(302, &json!({})).header("location", "https://elsewhere.test/1.png")
        }
        "/files/round.png" => Reply::json(302, &json!({})).header("location", "round.png"),
        "/files/nowhere.png" => Reply::json(302, &json!({})),
        "/files/broken.png" => Reply::error(500, "server_error", "disk on fire"),
        _ => Reply::error(404, "not_found", "no such file"),
    };
    reply.send().await
}
