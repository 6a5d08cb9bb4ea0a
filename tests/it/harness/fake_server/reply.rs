//! What a fake replies, and how: late, held back, or cut off.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Response, StatusCode},
};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::Semaphore;

/// The reply to one call.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    delay: Duration,
    gate: Option<Gate>,
    cut_at: Option<usize>,
}

/// Holds replies back; each added permit releases one.
pub type Gate = Arc<Semaphore>;

/// A gate that has released none yet.
pub fn closed_gate() -> Gate {
    Arc::new(Semaphore::new(0))
}

impl Reply {
    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::bytes("application/json", body.to_string()).status(status)
    }

    /// A body of another content type.
    pub fn bytes(content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            body,
            ..Self::empty(200).header("content-type", content_type)
        }
    }

    /// No body.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            delay: Duration::ZERO,
            gate: None,
            cut_at: None,
        }
    }

    /// Never comes.
    pub fn never() -> Self {
        Self::empty(200).held_by(&closed_gate())
    }

    /// Replaces the status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Delays the reply by this long.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Delays the reply until the gate releases it.
    pub fn held_by(mut self, gate: &Gate) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }

    /// Breaks the connection after this many bytes of the body.
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    /// Breaks the connection in the middle of the body.
    pub fn cut_in_half(self) -> Self {
        let half = self.length() / 2;
        self.cut_at(half)
    }

    /// The length of the body in bytes.
    pub fn length(&self) -> usize {
        self.body.len()
    }

    /// Waits as scripted, then returns the response.
    pub(super) async fn send(self) -> Response<Body> {
        tokio::time::sleep(self.delay).await;
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        let body = match self.cut_at {
            None => Body::from(self.body),
            Some(bytes) => cut_off(self.body.slice(..bytes)),
        };
        response.body(body).unwrap()
    }
}

/// Sends `body`, then breaks the connection.
fn cut_off(body: Bytes) -> Body {
    let end = stream::once(async {
        // Buffered bytes are sent while the body is pending.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    Body::from_stream(stream::iter([Ok(body)]).chain(end))
}
