//! The end of the process, in two steps that all see: nothing new is taken, but questions are still
//! answered; then the doors are closed. And a tracker of what must finish in between.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared by everything that runs for as long as the process does.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// What must finish, whatever becomes of the request it came from.
    pub tracker: TaskTracker,
    begun: CancellationToken,
    doors_closed: CancellationToken,
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

    /// Says that nobody is to be let in any more: what had to finish has.
    pub fn stop_accepting(&self) {
        self.doors_closed.cancel();
    }

    /// Resolves once nobody is to be let in any more.
    pub async fn doors_closed(&self) {
        self.doors_closed.cancelled().await;
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
}
