//! A fake upstream with OpenAI's Images API that fails as real ones do, and records every call. The seed, the purchase,
//! and the number of earlier calls for that purchase decide what it does.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64_simd::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinSet};

use super::book::{Book, Call, Digest, Marker, Outcome, marker_in};

const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
const IMAGE_SIDE_PX: u32 = 48;
/// The least and the longest time for an image, in milliseconds.
const TAKES_MS: (u64, u64) = (200, 1_500);
/// Longer than any client waits.
const HANGS_FOR: Duration = Duration::from_mins(10);

/// The running fake.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
}

struct ServerState {
    seed: u64,
    book: Arc<Book>,
    /// How many calls each purchase had.
    asked: Mutex<HashMap<Marker, u32>>,
}

impl Upstream {
    pub(super) async fn start(seed: u64, book: Arc<Book>) -> anyhow::Result<Self> {
        let asked = Mutex::default();
        let state = Arc::new(ServerState { seed, book, asked });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(answer).with_state(state);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            drop(axum::serve(listener, router).await);
        });
        Ok(Self {
            address,
            _serving: serving,
        })
    }
}

async fn answer(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    let is_steady = request.uri().path().starts_with("/steady");
    let Ok(body) = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let Some(marker) = marker_in(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let n = number_of_images(&body);
    let chance = state.chance(marker);
    let outcome = choose(&body, n, chance, is_steady);
    let images = match outcome {
        Outcome::Generates | Outcome::Truncates => n,
        Outcome::GeneratesFewer => n - 1,
        _ => 0,
    };
    let images: Vec<Vec<u8>> = (0..images).filter_map(|_| image().ok()).collect();
    let call = state.note(marker, outcome, &images);
    if is_steady {
        tokio::time::sleep(Duration::from_millis(20)).await;
    } else {
        let takes = TAKES_MS.0 + (chance >> 16) % (TAKES_MS.1 - TAKES_MS.0);
        tokio::time::sleep(Duration::from_millis(takes)).await;
    }
    match outcome {
        Outcome::Hangs => {
            tokio::time::sleep(HANGS_FOR).await;
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Outcome::Fails => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "an error",
        ),
        Outcome::Refuses => error(StatusCode::BAD_REQUEST, "moderation_blocked", "refused"),
        _ => state.images(call, outcome, &images),
    }
}

/// The outcome of a call: by its prompt, or by `chance`, where one hundredth is one in a hundred.
fn choose(body: &[u8], n: usize, chance: u64, is_steady: bool) -> Outcome {
    let asks_for = |word: &[u8]| memchr::memmem::find(body, word).is_some();
    if asks_for(b"something refused") {
        return Outcome::Refuses;
    }
    if asks_for(b"something to talk about") {
        return Outcome::Talks;
    }
    match chance % 100 {
        _ if is_steady => Outcome::Generates,
        0..10 => Outcome::Fails,
        10..15 => Outcome::Hangs,
        15..18 => Outcome::Truncates,
        18..20 if n > 1 => Outcome::GeneratesFewer,
        _ => Outcome::Generates,
    }
}

impl ServerState {
    /// The chance for the next call of a purchase.
    fn chance(&self, marker: Marker) -> u64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asked.entry(marker).or_insert(0);
        *count += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, marker, *count).hash(&mut hasher);
        hasher.finish()
    }

    /// Records a call; returns its number in the book.
    fn note(&self, marker: Marker, outcome: Outcome, images: &[Vec<u8>]) -> usize {
        let mut calls = self.book.calls();
        calls.push(Call {
            marker,
            outcome,
            images: images.iter().map(|image| digest(image)).collect(),
            is_sent: false,
        });
        calls.len() - 1
    }

    /// An answer with images, which records that it was read, or breaks off in the middle.
    fn images(self: &Arc<Self>, call: usize, outcome: Outcome, images: &[Vec<u8>]) -> Response {
        let data: Vec<Value> = images
            .iter()
            .map(|image| json!({"b64_json": STANDARD.encode_to_string(image)}))
            .collect();
        let mut whole = Bytes::from(json!({"created": 1_700_000_000, "data": data}).to_string());
        let length = whole.len();
        let truncates = outcome == Outcome::Truncates;
        let last = whole.split_off(if truncates { length / 2 } else { length - 1 });
        let state = Arc::clone(self);
        // The last chunk is requested once all earlier ones were read.
        let end = move || {
            if truncates {
                return Err(std::io::Error::other("broken off"));
            }
            if let Some(call) = state.book.calls().get_mut(call) {
                call.is_sent = true;
            }
            Ok(last)
        };
        let pieces = stream::unfold((Some(whole), Some(end)), async |(whole, end)| match whole {
            Some(whole) => Some((Ok(whole), (None, end))),
            None => end.map(|end| (end(), (None, None))),
        });
        let headers = [
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
        ];
        (headers, Body::from_stream(pieces)).into_response()
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": "error", "code": code, "param": null}});
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, body.to_string()).into_response()
}

/// `n` of a JSON body or of a form.
fn number_of_images(body: &[u8]) -> usize {
    let after = [&b"\"n\":"[..], b"name=\"n\"\r\n\r\n"]
        .iter()
        .find_map(|name| Some(&body[memchr::memmem::find(body, name)? + name.len()..]));
    let digits = after.unwrap_or_default().iter().map_while(|byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then_some(usize::from(digit))
    });
    digits.fold(0, |n, digit| n * 10 + digit).clamp(1, 10)
}

/// Noise: no two images are the same.
pub(super) fn image() -> anyhow::Result<Vec<u8>> {
    let side = usize::try_from(IMAGE_SIDE_PX)?;
    let mut pixels = vec![0; side * side * 3];
    rand::fill(&mut pixels[..]);
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(
        &pixels,
        IMAGE_SIDE_PX,
        IMAGE_SIDE_PX,
        ExtendedColorType::Rgb8,
    )?;
    Ok(png)
}

pub(super) fn digest(image: &[u8]) -> Digest {
    Sha256::digest(image).into()
}
