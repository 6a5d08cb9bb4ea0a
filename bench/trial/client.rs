//! A client: sends a request and returns the answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};
use reqwest::{RequestBuilder, Response, header::HeaderMap};
use serde_json::Value;
use uuid::Uuid;

use super::{balancer::Balancer, book::Book};

/// What all clients share.
pub(super) struct Shared {
    pub(super) book: Arc<Book>,
    pub(super) balancer: Balancer,
    /// No new purchase starts after this.
    pub(super) until: Instant,
}

/// One client with its key and connections.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) http: reqwest::Client,
    pub(super) key: String,
    pub(super) rng: StdRng,
}

/// The outcome of one request.
pub(super) struct Heard {
    /// `None`: no complete answer.
    pub(super) status: Option<u16>,
    headers: HeaderMap,
    /// `Null` if it is not JSON.
    pub(super) body: Value,
    /// Why there is no answer.
    error: String,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, key: &str, rng: StdRng) -> Self {
        Self {
            shared,
            http: http_client(),
            key: key.to_owned(),
            rng,
        }
    }

    /// Whether there is time for another purchase.
    pub(super) fn goes_on(&self) -> bool {
        Instant::now() < self.shared.until
    }

    /// Sleeps for a random time in this range.
    pub(super) async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.rng.random_range(milliseconds));
        tokio::time::sleep(pause).await;
    }

    /// A replica, chosen by the balancer.
    pub(super) fn pick(&mut self) -> usize {
        self.shared.balancer.pick(&mut self.rng)
    }

    pub(super) fn post(&self, replica: usize, path: &str) -> RequestBuilder {
        let url = self.shared.balancer.url(replica, path);
        self.http.post(url).bearer_auth(&self.key)
    }

    pub(super) fn get(&self, replica: usize, path: &str) -> RequestBuilder {
        let url = self.shared.balancer.url(replica, path);
        self.http.get(url).bearer_auth(&self.key)
    }
}

impl Heard {
    /// Sends a request and reads its answer, for at most `patience`.
    pub(super) async fn of(request: RequestBuilder, patience: Duration) -> Self {
        let answer = async { whole(request.send().await?).await };
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(heard)) => heard,
            Ok(Err(error)) => Self::silence(&chain(&error)),
            Err(_) => Self::silence("no answer for as long as the client waits"),
        }
    }

    fn silence(error: &str) -> Self {
        Self {
            status: None,
            headers: HeaderMap::new(),
            body: Value::Null,
            error: error.to_owned(),
        }
    }

    /// Whether an SDK would retry.
    pub(super) fn may_be_retried(&self) -> bool {
        match self.header("x-should-retry") {
            Some("false") => false,
            Some("true") => true,
            _ => matches!(self.status, None | Some(408 | 409 | 429 | 500..)),
        }
    }

    /// The wait that `Retry-After` asks for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.parse().ok()?;
        (seconds <= 60).then(|| Duration::from_secs(seconds))
    }

    /// The id of the task that the answer names.
    pub(super) fn task(&self) -> Option<Uuid> {
        let named = self.body["id"].as_str();
        named.or(self.header("x-task-id"))?.parse().ok()
    }

    /// The error message, or why there is no answer.
    pub(super) fn message(&self) -> String {
        let message = self.body["error"]["message"].as_str();
        message.unwrap_or(&self.error).to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

async fn whole(response: Response) -> reqwest::Result<Heard> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await?;
    Ok(Heard {
        status: Some(status),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        error: String::new(),
    })
}

/// The innermost cause says most.
fn chain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Every client has its own connections.
pub(super) fn http_client() -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap_or_default()
}
