//! Reading request bodies: within their limits of size, time and memory.

use std::{error::Error, time::Duration};

use axum::{body::Body, http::StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::error::ApiError;
use crate::{
    app::{App, BUFFER_UNIT},
    config::Server,
};

/// How much of a body that is too large is still read, so that its sender gets to read the answer.
const OVERSIZE_READ_MAX: usize = 256 << 20;

/// A body that is held whole, with its share of the memory.
pub(super) struct Held {
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

/// The pieces of a body. A sender that falls silent, or takes too long in all, ends it with an error.
pub(super) fn pieces(
    body: Body,
    limits: &Server,
) -> impl Stream<Item = Result<Bytes, ApiError>> + Send + use<> {
    let deadline = Instant::now() + limits.body_timeout();
    let idle = limits.body_idle_timeout();
    stream::unfold(Some(body.into_data_stream()), move |body| async move {
        let mut body = body?;
        let piece = next_piece(&mut body, deadline.min(Instant::now() + idle)).await?;
        let rest = piece.is_ok().then_some(body);
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
            tracing::debug!(error = &error as &dyn Error, "a body broke off");
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

/// Reads a body whole, once there is memory for it.
pub(super) async fn hold(app: &App, body: Body, declared: Option<usize>) -> Result<Held, ApiError> {
    let limits = &app.config.server;
    let bytes_max = limits.json_bytes_max;
    let expected = declared.unwrap_or(bytes_max).min(bytes_max);
    let share = share(app, expected).await?;
    let mut pieces = Box::pin(pieces(body, limits));
    let mut held = BytesMut::with_capacity(declared.unwrap_or(0).min(bytes_max));
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if held.len() + piece.len() > bytes_max {
            return Err(too_large(pieces, held.len() + piece.len(), bytes_max).await);
        }
        held.extend_from_slice(&piece);
    }
    Ok(Held {
        bytes: held.freeze(),
        _share: share,
    })
}

async fn share(app: &App, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let units = u32::try_from(bytes.div_ceil(BUFFER_UNIT)).unwrap_or(u32::MAX);
    let wait = app.buffers.clone().acquire_many_owned(units);
    match tokio::time::timeout(BUFFER_WAIT, wait).await {
        Ok(Ok(share)) => Ok(share),
        Ok(Err(_)) | Err(_) => Err(ApiError::unavailable("too many large requests at once", 1)),
    }
}

/// For memory that other bodies have.
const BUFFER_WAIT: Duration = Duration::from_secs(10);

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

/// A multipart body, read part by part.
pub(super) fn form(
    app: &App,
    request: axum::extract::Request,
    content_type: &str,
) -> Result<multer::Multipart<'static>, ApiError> {
    let boundary = multer::parse_boundary(content_type)
        .ok()
        .ok_or_else(|| ApiError::bad_request("malformed multipart body: it has no boundary"))?;
    let pieces = pieces(request.into_body(), &app.config.server);
    Ok(multer::Multipart::new(pieces, boundary))
}

/// What a form that cannot be read is answered with: its own error, if reading its body failed.
#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
pub(super) fn malformed_form(error: multer::Error) -> ApiError {
    if let multer::Error::StreamReadFailed(cause) = &error
        && let Some(error) = cause.downcast_ref::<ApiError>()
    {
        return error.clone();
    }
    ApiError::bad_request(format!("malformed multipart body: {error}"))
}
