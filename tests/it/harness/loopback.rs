//! Servers on a free port of loopback, below every fake that speaks TCP. What they serve ends when it is dropped.

use std::net::SocketAddr;

use axum::{
    BoxError,
    body::Body,
    http::{Request, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A port that is listened on and not served yet.
pub struct Loopback(pub TcpListener);

/// Held for its drop, which ends a server and all its connections.
pub type Serving = JoinSet<()>;

impl Loopback {
    pub async fn bind() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The URL of an HTTP server on it, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Runs `serve` with every connection. How a connection ends is the client's business.
    pub fn accept<F>(self, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Serving
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = self.0.accept().await {
                connections.spawn(serve(stream));
            }
        });
        accepting
    }

    /// Answers every request. A connection breaks where its answer is an error.
    pub fn serve<F>(
        self,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> Serving
    where
        F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
    {
        self.accept(move |stream| {
            let answer = service_fn(answer.clone());
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer)
        })
    }
}
