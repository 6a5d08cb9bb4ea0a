//! A stand-in for an upstream with OpenAI's Images API. It answers what it was told to, in order.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

/// What it does with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers with so many pictures.
    Pictures(usize),
    Answer(u16, String),
    /// Sends the head and a piece of the body, and hangs up.
    CutOff,
    /// Never answers.
    Silence,
    /// Answers with one picture once it is let go on.
    Hold,
}

/// One request that it had.
#[derive(Clone, Debug)]
pub struct Had {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Answers with one picture whenever it was told nothing else.
pub struct Upstream {
    /// Up to `/images/generations`.
    pub base_url: String,
    script: Arc<Script>,
    serving: JoinHandle<()>,
}

struct Script {
    acts: Mutex<VecDeque<Act>>,
    had: Mutex<Vec<Had>>,
    go_on: Semaphore,
}

impl Upstream {
    #[expect(
        clippy::disallowed_methods,
        reason = "no shutdown waits for a stand-in"
    )]
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let script = Arc::new(Script {
            acts: Mutex::default(),
            had: Mutex::default(),
            go_on: Semaphore::new(0),
        });
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&script));
        let serving = tokio::task::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            base_url,
            script,
            serving,
        }
    }

    /// Settings under which `gpt-image-2` is drawn here.
    pub fn settings(&self, more: &str) -> String {
        format!(
            "{more}\n[backends.up]\nkind = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk-upstream\"\ntimeout_ms = 20000\n\
             [models.gpt-image-2]\nbackend = \"up\"\n",
            self.base_url
        )
    }

    pub fn then(&self, act: Act) -> &Self {
        self.script.acts.lock().unwrap().push_back(act);
        self
    }

    /// Lets one held request be answered.
    pub fn let_go(&self) {
        self.script.go_on.add_permits(1);
    }

    pub fn had(&self) -> Vec<Had> {
        self.script.had.lock().unwrap().clone()
    }

    /// Returns once it has had so many requests.
    pub async fn wait_for(&self, requests: usize) {
        for _ in 0..3000 {
            if self.had().len() >= requests {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} requests came, not {requests}", self.had().len());
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (path, body) = (uri.path().to_owned(), body.to_vec());
    script.had.lock().unwrap().push(Had {
        path,
        headers,
        body,
    });
    let act = script.acts.lock().unwrap().pop_front();
    match act.unwrap_or(Act::Pictures(1)) {
        Act::Pictures(count) => respond(200, pictures(count).to_string().into()),
        Act::Answer(status, body) => respond(status, body.into()),
        Act::CutOff => {
            let text = pictures(1).to_string();
            let half = Bytes::from(text[..text.len() / 2].to_owned());
            let pieces = [Ok(half), Err("hung up")];
            respond(200, Body::from_stream(futures_util::stream::iter(pieces)))
        }
        Act::Silence => std::future::pending::<Result<Response, Infallible>>()
            .await
            .unwrap(),
        Act::Hold => {
            script.go_on.acquire().await.unwrap().forget();
            respond(200, pictures(1).to_string().into())
        }
    }
}

fn respond(status: u16, body: Body) -> Response {
    let builder = Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header(header::CONTENT_TYPE, "application/json");
    builder.body(body).unwrap()
}

/// An answer with so many pictures in it.
pub fn pictures(count: usize) -> Value {
    let png = base64_simd::STANDARD.encode_to_string(png());
    json!({ "created": 1, "data": vec![json!({ "b64_json": png }); count] })
}

/// A small picture.
pub fn png() -> Vec<u8> {
    let mut png = Vec::new();
    image::RgbImage::from_pixel(3, 2, image::Rgb([9, 99, 200]))
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    png
}
