//! Reads request bodies within limits of size, time and memory.

use std::{error::Error, time::Duration};

use axum::{body::Body, http::StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::{error::ApiError, form::Form};
use crate::{
    accounts::Caller,
    app::App,
    buffers::{Exhausted, Share},
    config::Server,
};

/// How much of an oversized body is still read, so that the client can read the response.
const OVERSIZE_READ_MAX: usize = 256 << 20;
/// The first bytes of a body, exempt from the memory share and the minimum rate: a connection has one body at a
/// time, so the number of connections bounds this memory.
const FREE_BYTES: usize = 64 << 10;
/// The step by which a share grows while a body arrives.
const STEP_BYTES: usize = 256 << 10;
/// `Retry-After` when memory is exhausted: other requests may have released some by then.
const MEMORY_RETRY_S: u32 = 1;

/// The pieces of a body. The stream ends with an error (408) if the client pauses too long, sends too slowly, or
/// exceeds the total time.
pub(super) fn pieces(
    body: Body,
    limits: &Server,
) -> impl Stream<Item = Result<Bytes, ApiError>> + Send + use<> {
    let deadline = Instant::now() + limits.body_timeout();
    let idle = limits.body_idle_timeout();
    let pace = Pace::new(limits);
    let reading = Some((body.into_data_stream(), pace));
    stream::unfold(reading, move |reading| async move {
        let (mut body, mut pace) = reading?;
        let asked = Instant::now();
        let piece = next_piece(&mut body, deadline.min(asked + idle)).await?;
        let piece = piece.and_then(|piece| pace.kept(piece, asked.elapsed()));
        let rest = piece.is_ok().then_some((body, pace));
        Some((piece, rest))
    })
}

async fn next_piece(
    body: &mut axum::body::BodyDataStream,
    deadline: Instant,
) -> Option<Result<Bytes, ApiError>> {
    match timeout_at(deadline, body.next()).await {
        Ok(Some(Ok(piece))) => Some(Ok(piece)),
        Ok(Some(Err(error))) => {
            tracing::debug!(error = &error as &dyn Error, "a body ended early");
            Some(Err(ApiError::bad_request(
                "the body could not be read to its end",
            )))
        }
        Ok(None) => None,
        Err(_) => Some(Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        ))),
    }
}

/// Enforces the minimum rate of a body while the gateway waits for it: a body that holds memory must progress.
struct Pace {
    bytes_per_s_min: usize,
    window: Duration,
    /// Time spent waiting in the current window.
    waited: Duration,
    /// Bytes received in the current window.
    bytes: usize,
    /// Bytes received in total.
    bytes_in_all: usize,
}

impl Pace {
    fn new(limits: &Server) -> Self {
        Self {
            bytes_per_s_min: limits.body_bytes_per_s_min,
            window: limits.body_idle_timeout(),
            waited: Duration::ZERO,
            bytes: 0,
            bytes_in_all: 0,
        }
    }

    fn kept(&mut self, piece: Bytes, waited: Duration) -> Result<Bytes, ApiError> {
        self.waited += waited;
        self.bytes += piece.len();
        self.bytes_in_all += piece.len();
        if self.waited < self.window {
            return Ok(piece);
        }
        let came_in_ms = self.bytes as u128 * 1000;
        let least = self.bytes_per_s_min as u128 * self.waited.as_millis();
        if self.bytes_in_all > FREE_BYTES && came_in_ms < least {
            let message = format!(
                "the body arrives too slowly: a large one must bring {} bytes a second",
                self.bytes_per_s_min
            );
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(piece)
    }
}

/// Memory for the held parts of a request, charged to its account's share as they arrive.
pub(super) struct Holding {
    share: Share,
    bytes: usize,
}

impl Holding {
    /// Holds nothing yet.
    pub(super) fn new(app: &App, caller: &Caller) -> Self {
        Self {
            share: app.buffers.share(caller.account_id),
            bytes: 0,
        }
    }

    /// The number of bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a piece to `held`. Errors with 429 or 503 if the account or the process has no memory left.
    pub(super) fn push(&mut self, held: &mut BytesMut, piece: &[u8]) -> Result<(), ApiError> {
        self.bytes += piece.len();
        let above = self.bytes.saturating_sub(FREE_BYTES);
        self.share.grow_to(above.next_multiple_of(STEP_BYTES))?;
        held.extend_from_slice(piece);
        Ok(())
    }
}

impl From<Exhausted> for ApiError {
    fn from(exhausted: Exhausted) -> Self {
        let message = exhausted.to_string();
        match exhausted {
            Exhausted::Account { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, message)
                .code("concurrency_limit")
                .retry_after(MEMORY_RETRY_S),
            Exhausted::All => Self::unavailable(&message, MEMORY_RETRY_S),
        }
    }
}

/// Reads a whole body into memory. The memory stays charged until the [`Holding`] is dropped. Errors with 413
/// beyond `json_bytes_max`, and as [`pieces`] and [`Holding::push`] do.
pub(super) async fn hold(
    app: &App,
    caller: &Caller,
    body: Body,
) -> Result<(Bytes, Holding), ApiError> {
    let limits = &app.config.server;
    let bytes_max = limits.json_bytes_max;
    let mut pieces = Box::pin(pieces(body, limits));
    let (mut held, mut holding) = (BytesMut::new(), Holding::new(app, caller));
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if held.len() + piece.len() > bytes_max {
            return Err(too_large(pieces, held.len() + piece.len(), bytes_max).await);
        }
        holding.push(&mut held, &piece)?;
    }
    Ok((held.freeze(), holding))
}

async fn too_large(
    mut rest: impl Stream<Item = Result<Bytes, ApiError>> + Unpin,
    mut size: usize,
    bytes_max: usize,
) -> ApiError {
    while let Some(Ok(piece)) = rest.next().await {
        size += piece.len();
        if size > OVERSIZE_READ_MAX {
            break;
        }
    }
    let message = format!("body size {size} exceeds maximum {bytes_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// Opens a multipart body to be read part by part; 400 if it has no boundary.
pub(super) fn form(
    app: &App,
    request: axum::extract::Request,
    content_type: &str,
) -> Result<Form, ApiError> {
    Form::new(
        content_type,
        pieces(request.into_body(), &app.config.server),
    )
}

/// Larger bodies are parsed on a blocking thread, so that parsing does not delay other requests.
const PARSED_IN_PLACE_BYTES_MAX: usize = 16 << 10;

/// Runs `work`, whose duration grows with `bytes`, on a blocking thread if it may take long.
pub(super) async fn parse<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= PARSED_IN_PLACE_BYTES_MAX {
        return work();
    }
    let parsed = tokio::task::spawn_blocking(work).await;
    parsed.unwrap_or_else(|error| Err(ApiError::internal("the body could not be parsed", &error)))
}
