//! Middleware for every request: assigns its id, logs it, and reads the rest of its body. Otherwise the client
//! would see a reset connection instead of the response.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, field::Empty};

use super::{error::ApiError, server::Connection};
use crate::{app::App, ids};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Load balancers request these every few seconds, so successes are not logged at info level.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];
/// `Retry-After` of a request refused on a reserve connection.
const RESERVE_RETRY_S: u32 = 1;

/// Limits for reading an unread body before the response is sent.
struct Rest {
    bytes_max: usize,
    time_max: Duration,
}

/// For callers with a valid key.
const REST_OF_KNOWN: Rest = Rest {
    bytes_max: 64 << 20,
    time_max: Duration::from_secs(30),
};
/// For all other clients: enough for a body that has already arrived.
const REST_OF_STRANGERS: Rest = Rest {
    bytes_max: 64 << 10,
    time_max: Duration::from_secs(1),
};

/// Assigns the request an id (the client's own if it is valid) and logs the request with its route template.
pub(super) async fn trace(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|id| is_sane(id))
        .cloned();
    let id = id.or_else(|| HeaderValue::try_from(ids::credential_id().to_string()).ok());
    let method = request.method().clone();
    let connection = connection(&request);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("(none)", MatchedPath::as_str);
    let shown = id
        .as_ref()
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    let span = tracing::info_span!("request", request.id = shown, http.route = route, %method, task.id = Empty);
    let began = Instant::now();
    let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = answered
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_| crashed());
    let (status, duration_ms) = (response.status().as_u16(), began.elapsed().as_millis());
    let is_probe = PROBES.contains(&route) && response.status().is_success();
    let is_worth_it = !is_probe && connection.as_ref().is_none_or(|one| one.may_log());
    span.in_scope(|| {
        if is_worth_it {
            tracing::info!(status, duration_ms, "answered");
        } else {
            tracing::debug!(status, duration_ms, "answered");
        }
    });
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    // The next request should go to another gateway, or to a connection that is not from the reserve.
    if app.shutdown.has_begun() || connection.is_some_and(|one| one.is_reserve) {
        close_after(&mut response);
    }
    response
}

/// The request's connection; `None` in a test that calls the router directly.
pub(super) fn connection(request: &Request) -> Option<Arc<Connection>> {
    request.extensions().get().cloned()
}

fn close_after(response: &mut Response) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// Refuses requests without exactly one `Host` header, which a proxy could route differently, and, on a reserve
/// connection, requests with an unsafe method, which may take long.
pub(super) async fn admit(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let (is_new, method) = (request.version() >= Version::HTTP_11, request.method());
    let is_reserve = connection(&request).is_some_and(|one| one.is_reserve);
    if hosts > 1 || hosts == 0 && is_new {
        return ApiError::bad_request("a request must have one Host header").into_response();
    }
    if is_reserve && !method.is_safe() {
        return ApiError::unavailable("too many connections", RESERVE_RETRY_S).into_response();
    }
    next.run(request).await
}

/// The response after a panic, whose message is already in the log.
fn crashed() -> Response {
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn is_sane(id: &HeaderValue) -> bool {
    let visible = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.as_bytes().iter().all(visible)
}

/// Whether the request was authenticated with a valid key.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    /// Marks the request as authenticated.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads the rest of the body before the response is sent. A client that waits for `100 Continue` does not get
/// one, and one that exceeds the limits still gets its response, after which its connection is closed.
pub(super) async fn drain(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let known = Known::default();
    parts.extensions.insert(known.clone());
    let waits = parts.headers.contains_key(header::EXPECT);
    let shared = Shared(Arc::new(Mutex::new(Reading {
        body,
        begun: !waits,
    })));
    let request = Request::from_parts(parts, Body::new(shared.clone()));
    let mut response = next.run(request).await;
    let rest = if known.0.load(Ordering::Relaxed) {
        REST_OF_KNOWN
    } else {
        REST_OF_STRANGERS
    };
    // A body that has already timed out gets no more time.
    let is_readable = shared.lock().begun && response.status() != StatusCode::REQUEST_TIMEOUT;
    let has_ended = shared.is_end_stream() || is_readable && rest.read(shared).await;
    if !has_ended {
        close_after(&mut response);
    }
    response
}

impl Rest {
    /// Reads the body and returns whether it ended within the limits.
    async fn read(&self, body: Shared) -> bool {
        let mut pieces = Body::new(body).into_data_stream();
        let mut left = self.bytes_max;
        let to_the_end = async {
            while let Some(piece) = pieces.next().await {
                let read = piece.map_or(usize::MAX, |piece| piece.len());
                if read > left {
                    return false;
                }
                left -= read;
            }
            true
        };
        let read = tokio::time::timeout(self.time_max, to_the_end).await;
        read.unwrap_or(false)
    }
}

/// A body that can still be read after its handler dropped it.
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
