//! Chooses the replica for a client: one that reports ready, as a load balancer would. Also records whether the replica
//! really generates.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    book::{Sample, prompt},
    client::{Heard, Shared, http_client},
};

const EVERY: Duration = Duration::from_millis(500);
const READY_TIMEOUT: Duration = Duration::from_secs(2);
const WORK_TIMEOUT: Duration = Duration::from_secs(4);
/// A generation that is answered within this time shows that the replica worked when it was sent.
const WORKS_WITHIN: Duration = Duration::from_secs(1);

/// Knows which replicas report ready.
pub(super) struct Balancer {
    addresses: Vec<SocketAddr>,
    ready: Vec<AtomicBool>,
}

impl Balancer {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        let ready = addresses.iter().map(|_| AtomicBool::new(true)).collect();
        Self { addresses, ready }
    }

    /// One of the ready replicas, or else any.
    pub(super) fn pick(&self, rng: &mut StdRng) -> usize {
        let all = 0..self.addresses.len();
        let ready: Vec<usize> = all
            .clone()
            .filter(|replica| self.ready[*replica].load(Ordering::Relaxed))
            .collect();
        if ready.is_empty() {
            rng.random_range(all)
        } else {
            ready[rng.random_range(0..ready.len())]
        }
    }

    pub(super) fn address(&self, replica: usize) -> SocketAddr {
        self.addresses[replica]
    }

    /// The URL of a path at a replica.
    pub(super) fn url(&self, replica: usize, path: &str) -> String {
        format!("http://{}{path}", self.addresses[replica])
    }
}

/// Samples readiness and real generations of the replicas.
pub(super) struct Prober {
    shared: Arc<Shared>,
    http: reqwest::Client,
    key: String,
}

impl Prober {
    pub(super) fn new(shared: Arc<Shared>, key: &str) -> Self {
        let (http, key) = (http_client(), key.to_owned());
        Self { shared, http, key }
    }

    async fn is_ready(&self, replica: usize) -> (bool, String) {
        let url = self.shared.balancer.url(replica, "/readyz");
        let request = self.http.get(url).timeout(READY_TIMEOUT).send();
        match request.await {
            Ok(answer) if answer.status().is_success() => (true, String::new()),
            Ok(answer) => (false, answer.text().await.unwrap_or_default()),
            Err(error) => (false, error.to_string()),
        }
    }

    /// A complete generation, at an upstream that always answers.
    async fn works(&self, replica: usize) -> (Option<bool>, String) {
        let marker = self.shared.book.next_marker();
        let body =
            json!({"model": "steady", "prompt": prompt(marker, "a probe"), "quality": "low"});
        let url = self.shared.balancer.url(replica, "/v1/images/generations");
        let request = self.http.post(url).bearer_auth(&self.key).json(&body);
        let began = Instant::now();
        let heard = Heard::of(request, WORK_TIMEOUT).await;
        let works = match heard.status {
            Some(200) => (began.elapsed() < WORKS_WITHIN).then_some(true),
            _ => Some(false),
        };
        (works, heard.message())
    }

    async fn sample(&self, replica: usize) {
        let began = Instant::now();
        let ready = async {
            let (is_ready, said) = self.is_ready(replica).await;
            self.shared.balancer.ready[replica].store(is_ready, Ordering::Relaxed);
            (is_ready, said)
        };
        let ((is_ready, said), (works, answered)) = tokio::join!(ready, self.works(replica));
        self.shared.book.samples().push(Sample {
            replica,
            began,
            is_ready,
            works,
            said: said + &answered,
        });
    }
}

/// Runs for as long as the trial: one sample after another starts, whether or not earlier ones have ended.
pub(super) async fn keep_probing(prober: Prober, replica: usize) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let prober = Arc::new(prober);
    let mut sampling = JoinSet::new();
    loop {
        ticks.tick().await;
        while sampling.try_join_next().is_some() {}
        let prober = Arc::clone(&prober);
        sampling.spawn(async move { prober.sample(replica).await });
    }
}
