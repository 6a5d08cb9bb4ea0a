//! The storage circuit: whether the store is writable. Writes report their results, and while they fail a small probe
//! runs every second. Code that depends on the store checks the circuit before it starts work.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{StorageError, Store};

/// A write that takes longer raises the suspicion that the store does not respond.
const SLOW_AFTER: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Shorter than the readiness timeout, so that both report the same.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// After this many consecutive failed writes the circuit opens without waiting for a probe.
const FAILURES_MAX: u32 = 5;

/// Why nothing can be stored, in words for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The store does not answer, or answers with errors.
    Unreachable,
    /// The store has no space left.
    Full,
}

/// Closed while the store is writable, open while it fails.
pub(super) struct Circuit {
    state: watch::Sender<Option<Failing>>,
    /// Failed writes since the last successful one.
    failures: AtomicU32,
    suspicion: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    trouble: Trouble,
    since: Instant,
}

impl Trouble {
    /// The message that clients see.
    pub fn message(self) -> &'static str {
        match self {
            Self::Unreachable => "storage cannot be reached",
            Self::Full => "storage is full",
        }
    }
}

impl Circuit {
    /// A closed circuit.
    pub(super) fn new() -> Self {
        Self {
            state: watch::Sender::new(None),
            failures: AtomicU32::new(0),
            suspicion: Arc::default(),
        }
    }

    /// Why the circuit is open; `None`: it is closed.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.state.borrow().map(|failing| failing.trouble)
    }

    /// Resolves once the circuit is closed.
    pub(super) async fn closed(&self) {
        // `self` holds the sender, so this cannot fail.
        let _ = self.state.subscribe().wait_for(Option::is_none).await;
    }

    /// Waits for a write, and records its duration and its result.
    pub(super) async fn watch<T>(
        &self,
        write: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let mut write = std::pin::pin!(write);
        let written = if let Ok(written) = timeout(SLOW_AFTER, write.as_mut()).await {
            written
        } else {
            self.suspicion.notify_one();
            write.await
        };
        self.record(&written);
        written
    }

    /// Records the result of a write. One failure is only a suspicion: a probe decides.
    pub(super) fn record<T>(&self, written: &Result<T, StorageError>) {
        match written {
            Ok(_) => self.failures.store(0, Ordering::Relaxed),
            Err(error) => {
                let Some(trouble) = error.trouble() else {
                    return;
                };
                let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                if failures.saturating_add(1) >= FAILURES_MAX {
                    self.open(trouble, error);
                } else {
                    self.suspicion.notify_one();
                }
            }
        }
    }

    fn open(&self, trouble: Trouble, error: &StorageError) {
        self.state.send_if_modified(|state| {
            let was = state.map(|failing| failing.trouble);
            let since = state.map_or_else(Instant::now, |failing| failing.since);
            *state = Some(Failing { trouble, since });
            if was.is_none() {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "storage fails: refusing new work until it recovers"
                );
            }
            was != Some(trouble)
        });
    }

    fn close(&self) {
        self.state.send_if_modified(|state| {
            let Some(failing) = state.take() else {
                return false;
            };
            let failed_ms = u64::try_from(failing.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(failed_ms, "storage is writable again");
            true
        });
    }

    /// Writes a small object to the store and records the result.
    pub(super) async fn probe(&self, store: &Store) -> Result<(), StorageError> {
        let probed = timeout(PROBE_TIMEOUT, store.check()).await;
        let probed = probed.unwrap_or_else(|_| {
            Err(StorageError::NoAnswer {
                store: store.describe(),
                seconds: PROBE_TIMEOUT.as_secs(),
            })
        });
        match &probed {
            Ok(()) => self.close(),
            Err(error) => self.open(error.trouble().unwrap_or(Trouble::Unreachable), error),
        }
        probed
    }

    /// Probes while the store fails or is suspected to fail, and checks the free space. Ends when the last handle of
    /// the circuit is dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with the store; a shutdown has nothing to wait for"
    )]
    pub(super) fn start_probing(circuit: &Arc<Self>, store: Store) {
        let (circuit, suspicion) = (Arc::downgrade(circuit), Arc::clone(&circuit.suspicion));
        tokio::spawn(async move {
            loop {
                let suspected = tokio::select! {
                    () = suspicion.notified() => true,
                    () = sleep(PROBE_INTERVAL) => false,
                };
                let Some(circuit) = Weak::upgrade(&circuit) else {
                    return;
                };
                let probed = suspected || circuit.trouble().is_some();
                if probed {
                    // `probe` itself logs a change of state.
                    let _ = circuit.probe(&store).await;
                } else if let Err(error) = store.check_free_space().await {
                    circuit.open(error.trouble().unwrap_or(Trouble::Unreachable), &error);
                }
                if suspected {
                    sleep(PROBE_INTERVAL).await;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<(), StorageError> {
        let source = std::io::Error::other("broken");
        Err(StorageError::Local {
            action: "write an object",
            source,
        })
    }

    #[tokio::test]
    async fn several_failed_writes_open_it_and_a_good_one_makes_them_forgotten() {
        let circuit = Circuit::new();
        for _ in 1..FAILURES_MAX {
            circuit.record(&failed());
        }
        assert_eq!(circuit.trouble(), None);
        circuit.record(&Ok(()));
        circuit.record(&failed());
        assert_eq!(circuit.trouble(), None);
        for _ in 1..FAILURES_MAX {
            circuit.record(&failed());
        }
        assert_eq!(circuit.trouble(), Some(Trouble::Unreachable));
        circuit.close();
        circuit.closed().await;
        assert_eq!(circuit.trouble(), None);
    }
}
