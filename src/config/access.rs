//! Accessors for settings in the units and types that the code uses.

use std::{collections::BTreeMap, time::Duration};

use super::{Config, Database, References, Routing, Server, Storage, Tasks, Uploads};

impl Config {
    /// The sections, and the top-level keys, that differ in another configuration.
    pub fn sections_unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let sections = self.in_force.iter();
        sections
            .filter(|(name, section)| other.in_force.get(*name) != Some(*section))
            .map(|(name, _)| name.as_str())
    }

    /// For each backend, a hash of its settings, secrets included.
    pub fn backend_fingerprints(&self) -> &BTreeMap<String, [u8; 32]> {
        &self.fingerprints
    }

    /// The effective settings as TOML that `--config` accepts, with `***` in place of every secret.
    pub fn to_toml(&self) -> String {
        self.in_force.to_string()
    }

    /// Settings that work but are probably not intended.
    pub fn warnings(&self) -> Vec<String> {
        let server = &self.server;
        let unreachable = server.public_url.is_none() && !server.listen.ip().is_loopback();
        unreachable
            .then(|| {
                format!(
                    "server.public_url is not set: every link will start with {}, which clients \
                     on other machines may not reach",
                    server.public_url()
                )
            })
            .into_iter()
            .collect()
    }
}

impl Server {
    /// The prefix of every link, without a trailing slash.
    pub fn public_url(&self) -> String {
        match &self.public_url {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.listen),
        }
    }
    /// Leaves a quarter of the connections to health checks, polls and files.
    pub fn sync_waiters_max(&self) -> usize {
        self.sync_waiters_max
            .min(self.connections_max - self.connections_max / 4)
    }
    /// For the head of the first request on a connection.
    pub fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }
    /// Between two requests on a connection.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
    /// Between two pieces of a body.
    pub fn body_idle_timeout(&self) -> Duration {
        Duration::from_millis(self.body_idle_timeout_ms)
    }
    /// For a whole body.
    pub fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }
    /// For a client to read a piece of the response.
    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }
    /// For running tasks to end at a shutdown.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

impl Database {
    /// For opening a connection, and for waiting for a free one.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }
    /// For one transaction or query, with the wait for its connection.
    pub fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms)
    }
}

impl Storage {
    /// How long the URL behind a result link is valid.
    pub fn link_ttl(&self) -> Duration {
        Duration::from_secs(self.link_ttl_s)
    }
}

impl Uploads {
    /// How long an upload is kept.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_s)
    }
    /// Between two deletions of expired uploads.
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s)
    }
}

impl References {
    /// For one reference.
    pub fn fetch_timeout(&self) -> Duration {
        Duration::from_millis(self.fetch_timeout_ms)
    }
    /// For all references of a task.
    pub fn fetch_all_timeout(&self) -> Duration {
        Duration::from_millis(self.fetch_all_timeout_ms)
    }
    /// For resolving, connecting and TLS.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }
    /// For the first byte, and between two pieces.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
    /// Failures are reported at multiples of this time.
    pub fn failure_delay_step(&self) -> Duration {
        Duration::from_millis(self.failure_delay_step_ms)
    }
}

impl Routing {
    /// How long an open circuit blocks calls.
    pub fn open(&self) -> Duration {
        Duration::from_millis(self.open_ms)
    }
    /// Before the first retry on the same route.
    pub fn retry_wait(&self) -> Duration {
        Duration::from_millis(self.retry_wait_ms)
    }
    /// Before any retry.
    pub fn retry_wait_max(&self) -> Duration {
        Duration::from_millis(self.retry_wait_max_ms)
    }
    /// How far the next probe may be away for a request that waits.
    pub fn sync_wait(&self) -> Duration {
        Duration::from_millis(self.sync_wait_ms)
    }
}

impl Tasks {
    /// From submission to the end of a task.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
    /// A worker that does not renew its lease for this long loses the task.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
    /// The longest expected wait of a request that waits.
    pub fn sync_wait_max(&self) -> Duration {
        Duration::from_millis(self.sync_wait_max_ms)
    }
}
