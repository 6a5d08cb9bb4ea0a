//! A client: sends a request and says what it heard.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};
use reqwest::{RequestBuilder, Response, header::HeaderMap};
use serde_json::Value;
use uuid::Uuid;

use super::{balancer::Balancer, book::Book};

/// What all clients know.
pub(super) struct Shared {
    pub(super) book: Arc<Book>,
    pub(super) balancer: Balancer,
    /// Nothing new is begun after it.
    pub(super) until: Instant,
}

pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) http: reqwest::Client,
    pub(super) key: String,
    pub(super) rng: StdRng,
}

/// What came of one request.
pub(super) struct Heard {
    /// `None`: no whole answer.
    pub(super) status: Option<u16>,
    headers: HeaderMap,
    /// `Null` where it is no JSON.
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

    pub(super) fn goes_on(&self) -> bool {
        Instant::now() < self.shared.until
    }

    pub(super) async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.rng.random_range(milliseconds));
        tokio::time::sleep(pause).await;
    }

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

    /// Whether an SDK would try again.
    pub(super) fn may_be_retried(&self) -> bool {
        match self.header("x-should-retry") {
            Some("false") => false,
            Some("true") => true,
            _ => matches!(self.status, None | Some(408 | 409 | 429 | 500..)),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.parse().ok()?;
        (seconds <= 60).then(|| Duration::from_secs(seconds))
    }

    pub(super) fn task(&self) -> Option<Uuid> {
        let named = self.body["id"].as_str();
        named.or(self.header("x-task-id"))?.parse().ok()
    }

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

/// Every client has connections of its own.
pub(super) fn http_client() -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap_or_default()
}
