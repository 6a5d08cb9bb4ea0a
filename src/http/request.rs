//! What every request passes: its id, its line in the log, and the rest of its body, which is read even
//! if nobody wants it, or the client would see a broken connection instead of its answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use super::body;
use crate::{app::App, ids};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Of a body that nobody wanted.
const DRAINED_BYTES_MAX: usize = 64 << 20;

/// Gives the request an id, the client's own if it is a sane one, and logs it by its route.
pub(super) async fn trace(request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|id| is_sane(id))
        .cloned();
    let id = id.or_else(|| HeaderValue::try_from(ids::credential_id().to_string()).ok());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("(none)", MatchedPath::as_str);
    let shown = id
        .as_ref()
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    let span = tracing::info_span!("request", request.id = shown, http.route = route, %method);
    let began = Instant::now();
    let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = answered
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_| crashed());
    let duration_ms = began.elapsed().as_millis();
    span.in_scope(|| tracing::info!(status = response.status().as_u16(), duration_ms, "answered"));
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A bug of ours: the panic's message is in the log already.
fn crashed() -> Response {
    use axum::response::IntoResponse;
    axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn is_sane(id: &HeaderValue) -> bool {
    let visible = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.as_bytes().iter().all(visible)
}

/// Before the answer, reads what the client is still sending; but one that waits to be told to begin
/// is not told so.
pub(super) async fn drain(State(app): State<App>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let waits = parts.headers.contains_key(header::EXPECT);
    let shared = Shared(Arc::new(Mutex::new(Reading {
        body,
        begun: !waits,
    })));
    let request = Request::from_parts(parts, Body::new(shared.clone()));
    let response = next.run(request).await;
    if shared.lock().begun && !shared.is_end_stream() {
        let mut rest = Box::pin(body::pieces(Body::new(shared), &app.config.server));
        let mut drained = 0;
        while let Some(Ok(piece)) = rest.next().await {
            drained += piece.len();
            if drained > DRAINED_BYTES_MAX {
                break;
            }
        }
    }
    response
}

/// A body that can still be read after whoever was given it has dropped it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Reading>>);

struct Reading {
    body: Body,
    begun: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut reading = self.lock();
        reading.begun = true;
        Pin::new(&mut reading.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
