//! A fake server with the web UI's API: as strict as the web UI about its input, and as verbose as sd-server, which
//! repeats the whole input.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Response, Uri},
    routing::{get, post},
};
use base64_simd::STANDARD;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::upstream::image,
};

/// The credentials it was started with.
const KEY: &str = "heron:nest:7f3a9c";

/// The running fake.
pub(super) struct WebUi {
    url: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    scenario: Mutex<Scenario>,
    received: Mutex<Vec<(String, Value)>>,
    /// How many images to withhold from the answer.
    withheld: Mutex<u64>,
}

impl WebUi {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            scenario: Mutex::new(Scenario::Generates),
            received: Mutex::default(),
            withheld: Mutex::default(),
        });
        let router = Router::new()
            .route("/sdapi/v1/txt2img", post(generate))
            .route("/sdapi/v1/img2img", post(generate))
            .route("/sdapi/v1/sd-models", get(models))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            shared,
            _serving: serving,
        }
    }

    /// The settings of a backend for it; `more` is added to its address and key.
    pub(super) fn settings_with(&self, more: &str) -> String {
        let url = &self.url;
        format!(
            "kind = \"sdapi\"\nbase_url = \"{url}\"\napi_key = \"{KEY}\"\nnative_side_px = 64\n\
             side_step_px = 8\nupscale = \"hires\"\nbatch_max = 4\n{more}"
        )
    }

    /// Every request so far: the last segment of its path, and its body.
    pub(super) fn received(&self) -> Vec<(String, Value)> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Returns this many images fewer than requested.
    pub(super) fn withhold(&self, images: u64) {
        *self.shared.withheld.lock().unwrap() = images;
    }
}

impl FakeUpstream for WebUi {
    fn settings(&self) -> String {
        self.settings_with("")
    }

    fn model(&self) -> String {
        "herons_v2".to_owned()
    }

    fn play(&self, scenario: Scenario) {
        *self.shared.scenario.lock().unwrap() = scenario;
    }

    fn plays(&self, scenario: Scenario) -> bool {
        !matches!(scenario, Scenario::Refuses | Scenario::LimitsRate)
    }

    fn asked(&self) -> usize {
        self.received().len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let (_, body) = self.received().pop().unwrap();
        let images = body["init_images"].as_array().cloned().unwrap_or_default();
        let texts = images.iter().chain([&body["mask"]]);
        let texts = texts.filter_map(Value::as_str);
        texts
            .map(|text| STANDARD.decode_to_vec(text).unwrap())
            .collect()
    }

    /// White exactly where the given mask is transparent.
    fn is_mask(&self, given: &[u8], came: &[u8]) -> bool {
        let given = image::load_from_memory(given).unwrap().into_rgba8();
        let came = image::load_from_memory(came).unwrap();
        assert_eq!(came.color(), image::ColorType::L8);
        let came = came.into_luma8();
        given.dimensions() == came.dimensions()
            && given
                .pixels()
                .zip(came.pixels())
                .all(|(given, came)| (given.0[3] == 0) == (came.0[0] == 255))
    }

    fn cancelled(&self) -> Vec<String> {
        Vec::new()
    }
}

fn knows(headers: &HeaderMap) -> bool {
    let expected = format!("Basic {}", STANDARD.encode_to_string(KEY));
    let given = headers.get("authorization");
    given.is_some_and(|given| given.as_bytes() == expected.as_bytes())
}

async fn models(headers: HeaderMap) -> Response<Body> {
    if !knows(&headers) {
        return answer(401, &json!({"detail": "Incorrect username or password"}));
    }
    answer(
        200,
        &json!([{"title": "herons_v2", "model_name": "herons_v2"}]),
    )
}

async fn generate(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let path = uri.path().rsplit('/').next().unwrap().to_owned();
    shared.received.lock().unwrap().push((path, body.clone()));
    let scenario = *shared.scenario.lock().unwrap();
    let error = |status, kind: &str, detail: &str| {
        let error = json!({"error": kind, "detail": detail, "body": "", "errors": ""});
        answer(status, &error)
    };
    match scenario {
        Scenario::KnowsNoKey => {
            return answer(401, &json!({"detail": "Incorrect username or password"}));
        }
        Scenario::FindsInvalid => return error(404, "HTTPException", "Sampler not found"),
        Scenario::Fails => return error(500, "OutOfMemoryError", ""),
        Scenario::Hangs => std::future::pending().await,
        Scenario::GeneratesNothing => return images(&[], &body),
        Scenario::GeneratesNoImage => return images(&[b"<html>It works!".to_vec()], &body),
        Scenario::BreaksOff => return cut_off(&vec![7; 100_000]),
        Scenario::Generates | Scenario::Refuses | Scenario::LimitsRate => {}
    }
    if !knows(&headers) {
        return answer(401, &json!({"detail": "Incorrect username or password"}));
    }
    for image in body["init_images"].as_array().into_iter().flatten() {
        let decoded = STANDARD.decode_to_vec(image.as_str().unwrap());
        if !decoded.is_ok_and(|bytes| image::guess_format(&bytes).is_ok()) {
            return error(500, "HTTPException", "Invalid encoded image");
        }
    }
    let names = match body["enable_hr"].as_bool() {
        Some(true) => ["hr_resize_x", "hr_resize_y"],
        _ => ["width", "height"],
    };
    let [width, height] = names.map(|name| u32::try_from(body[name].as_u64().unwrap()).unwrap());
    if width % 8 != 0 || height % 8 != 0 {
        return answer(
            422,
            &json!({"detail": [{"msg": "sides must be a multiple of 8"}]}),
        );
    }
    let count = body["batch_size"].as_u64().unwrap() - *shared.withheld.lock().unwrap();
    let result = (0..count).map(|index| image(width, height, u8::try_from(index).unwrap()));
    images(&result.collect::<Vec<_>>(), &body)
}

fn images(images: &[Vec<u8>], parameters: &Value) -> Response<Body> {
    let images: Vec<String> = images
        .iter()
        .map(|image| STANDARD.encode_to_string(image))
        .collect();
    answer(
        200,
        &json!({"images": images, "info": "", "parameters": parameters}),
    )
}

fn cut_off(image: &[u8]) -> Response<Body> {
    let begun = format!("{{\"images\":[\"{}", STANDARD.encode_to_string(image));
    let broken = stream::once(async {
        // Buffered bytes are sent while the body is pending.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
    });
    Response::new(Body::from_stream(stream::iter([Ok(begun)]).chain(broken)))
}

fn answer(status: u16, body: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.to_string().into())
        .unwrap()
}
