//! The end of the process: one signal that all see, and a tracker of what must finish first.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared by everything that runs for as long as the process does.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// What must finish, whatever becomes of the request it came from.
    pub tracker: TaskTracker,
    begun: CancellationToken,
}

impl Shutdown {
    /// Says that the process is to end. May be said again.
    pub fn begin(&self) {
        self.begun.cancel();
        self.tracker.close();
    }

    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Resolves once the process is to end.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Starts what goes on for as long as the process does, and need not finish.
    #[expect(
        clippy::disallowed_methods,
        reason = "tracked work is what a shutdown waits for"
    )]
    pub fn spawn_background<F>(&self, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(work)
    }

    /// Waits for tracked work. `false` if some was still under way after `patience`.
    pub async fn finished(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.tracker.wait())
            .await
            .is_ok()
    }
}
