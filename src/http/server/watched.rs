//! Bodies that report to their [`Connection`] whether it waits for the peer or for us.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};

use super::Connection;

/// A request body.
pub(super) struct RequestBody {
    body: Incoming,
    connection: Arc<Connection>,
    has_ended: bool,
}

/// A response body.
pub(super) struct ResponseBody {
    body: Body,
    connection: Arc<Connection>,
}

impl RequestBody {
    /// Reports that a request's head has arrived.
    pub(super) fn new(body: Incoming, connection: Arc<Connection>) -> Self {
        let has_ended = body.is_end_stream();
        connection.asked(!has_ended);
        Self {
            body,
            connection,
            has_ended,
        }
    }
}

impl ResponseBody {
    /// Reports that the response is being sent.
    pub(super) fn new(body: Body, connection: Arc<Connection>) -> Self {
        connection.answering();
        Self { body, connection }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.connection.awaits_body(polled.is_pending());
        self.has_ended |= matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.connection.body_over(self.has_ended);
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.connection.answered();
    }
}
