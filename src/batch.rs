//! Lets callers that come at the same time share one piece of work, as a transaction: while one
//! batch is under way the next one gathers. Nobody waits for company.

use std::{future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

/// Hands items to a loop that works on all that wait, in batches.
pub struct Batcher<T, R> {
    queue: mpsc::Sender<(T, oneshot::Sender<R>)>,
}

/// The loop has ended, or lost the item.
#[derive(Debug, thiserror::Error)]
#[error("the gateway is shutting down")]
pub struct Closed;

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts the loop. An item that was taken is worked on whatever becomes of its caller.
    ///
    /// `work` answers each item of a batch, in order.
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with its last handle; who must finish before a shutdown waits for an answer"
    )]
    pub fn start<F, Fut>(size_max: usize, work: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<R>> + Send,
    {
        let (queue, mut waiting) = mpsc::channel::<(T, oneshot::Sender<R>)>(size_max);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, size_max).await > 0 {
                let (items, replies): (Vec<T>, Vec<_>) = batch.drain(..).unzip();
                // A bug that one batch meets must not be the end of all: its callers see it closed.
                let worked = AssertUnwindSafe(work(items)).catch_unwind().await;
                for (reply, answer) in replies.into_iter().zip(worked.unwrap_or_default()) {
                    // A caller that has gone does not need its answer.
                    drop(reply.send(answer));
                }
            }
        });
        Self { queue }
    }

    /// Has one item worked on.
    pub async fn call(&self, item: T) -> Result<R, Closed> {
        let (reply, answer) = oneshot::channel();
        if self.queue.send((item, reply)).await.is_err() {
            return Err(Closed);
        }
        answer.await.or(Err(Closed))
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
        }
    }
}
