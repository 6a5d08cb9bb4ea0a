//! Closed-loop load: this many clients, each on its own connection, each sending its next request once the last one is
//! answered.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use super::wire::{Connection, Message};

/// No request may take longer, so that every run ends.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a load runs.
#[derive(Clone, Copy)]
pub(super) enum Extent {
    For(Duration),
    /// This many requests per client.
    Times(usize),
}

/// What is sent, by how many clients, and the expected answer.
pub(super) struct Load {
    pub(super) address: SocketAddr,
    /// How many clients send at the same time.
    pub(super) clients: usize,
    pub(super) extent: Extent,
    /// Sent in turn; each client starts at a different one.
    pub(super) requests: Vec<Vec<u8>>,
    /// The status that every answer must have.
    pub(super) status: u16,
}

/// The results of a load.
pub(super) struct Sample {
    /// From the first request to the last answer.
    pub(super) elapsed: Duration,
    /// In ascending order.
    latencies: Vec<Duration>,
    /// The beginning of the body of each client's last answer.
    pub(super) bodies: Vec<Vec<u8>>,
}

impl Load {
    /// Runs the load; errors if any answer is wrong or missing.
    pub(super) async fn run(self) -> anyhow::Result<Sample> {
        ensure!(!self.requests.is_empty(), "there is nothing to send");
        let load = Arc::new(self);
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..load.clients {
            clients.spawn(run_client(Arc::clone(&load), client, began));
        }
        let (mut latencies, mut bodies) = (Vec::new(), Vec::new());
        while let Some(ended) = clients.join_next().await {
            let (theirs, body) = ended??;
            latencies.extend(theirs);
            bodies.push(body);
        }
        let elapsed = began.elapsed();
        latencies.sort_unstable();
        Ok(Sample {
            elapsed,
            latencies,
            bodies,
        })
    }

    fn goes_on(&self, began: Instant, sent: usize) -> bool {
        match self.extent {
            Extent::For(duration) => began.elapsed() < duration,
            Extent::Times(times) => sent < times,
        }
    }
}

async fn run_client(
    load: Arc<Load>,
    client: usize,
    began: Instant,
) -> anyhow::Result<(Vec<Duration>, Vec<u8>)> {
    let mut connection = Connection::open(load.address).await?;
    let mut latencies = Vec::new();
    let mut body = Vec::new();
    let expected = format!("HTTP/1.1 {} ", load.status);
    while load.goes_on(began, latencies.len()) {
        let request = &load.requests[(client + latencies.len()) % load.requests.len()];
        let sent = Instant::now();
        let exchange = exchange(&mut connection, request);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .context("a request was not answered in time")??;
        latencies.push(sent.elapsed());
        ensure!(
            answer.first_line.starts_with(&expected),
            "{} where {expected}was expected: {}",
            answer.first_line,
            String::from_utf8_lossy(&answer.body)
        );
        body = answer.body;
    }
    Ok((latencies, body))
}

async fn exchange(connection: &mut Connection, request: &[u8]) -> anyhow::Result<Message> {
    connection.send(request).await?;
    let answer = connection.receive().await?;
    answer.context("a connection was closed instead of an answer")
}

impl Sample {
    /// How many requests were answered.
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    pub(super) fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// Answered requests per second.
    pub(super) fn a_second(&self) -> f64 {
        self.count() / self.elapsed.as_secs_f64()
    }

    /// In milliseconds: the longest latency of this percentage of requests.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        let index = self.latencies.len() * percent / 100;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(index.min(last))
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }
}
