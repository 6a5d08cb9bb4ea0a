//! Shutting down, in two steps that all parts observe: new work is refused but requests are still answered;
//! then the server stops accepting connections. A tracker holds the work that must finish in between.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared by everything that runs for the life of the process.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Work that must finish, even if its request is gone.
    pub tracker: TaskTracker,
    begun: CancellationToken,
    accepting_stopped: CancellationToken,
}

impl Shutdown {
    /// Begins the shutdown. May be called again.
    pub fn begin(&self) {
        self.begun.cancel();
        self.tracker.close();
    }

    /// Whether the shutdown has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Resolves when the shutdown begins.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Stops accepting connections; call it when the tracked work has finished.
    pub fn stop_accepting(&self) {
        self.accepting_stopped.cancel();
    }

    /// Resolves when no more connections are accepted.
    pub async fn accepting_stopped(&self) {
        self.accepting_stopped.cancelled().await;
    }

    /// Starts work that runs for the life of the process and need not finish.
    #[expect(
        clippy::disallowed_methods,
        reason = "a shutdown waits for tracked work, but not for this"
    )]
    pub fn spawn_background<F>(&self, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(work)
    }
}
