//! Runs tasks: claims them as slots become free, renews their leases, generates and settles them, and requeues
//! tasks whose worker was lost.

mod leases;
mod queue;

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::leases::Reachability;
use crate::{
    backend::catalog::Model,
    ids::TaskId,
    images::{
        Claimed, Images,
        run::{self, Ran},
        settle::Finished,
    },
    tasks::{Claim, Ending, Failure, FailureKind, Outcome, Task, store},
};

/// Time at the end of a shutdown to send the 503 responses of requests that are still waiting.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Claims and runs tasks until shutdown begins. Then it finishes running tasks or returns them to the queue.
#[derive(Clone)]
pub struct Worker {
    images: Images,
    running: Arc<Mutex<HashMap<TaskId, Running>>>,
    /// Notified when a task may be queued or a slot becomes free.
    wake: Arc<Notify>,
    reachability: Arc<Reachability>,
}

struct Running {
    fence: i64,
    lost: CancellationToken,
}

/// A running task whose lease is renewed. Dropping it stops the renewal, also after a panic.
struct UnderWay {
    running: Arc<Mutex<HashMap<TaskId, Running>>>,
    id: TaskId,
    fence: i64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // This process may have claimed the task again, under a higher fence.
        if running
            .get(&self.id)
            .is_some_and(|it| it.fence == self.fence)
        {
            running.remove(&self.id);
        }
    }
}

impl Worker {
    /// Creates a worker without running tasks; [`Worker::run`] starts it.
    pub fn new(images: Images) -> Self {
        Self {
            images,
            running: Arc::default(),
            wake: Arc::default(),
            reachability: Arc::default(),
        }
    }

    /// Runs all loops of the worker. All except the claim loop continue during shutdown while tasks run or requests
    /// wait here: leases are still renewed, and waiting requests still learn of tasks that other replicas end.
    pub async fn run(self, to_run: mpsc::UnboundedReceiver<Claimed>) {
        let app = &self.images;
        tokio::join!(
            self.claim(),
            self.take_over(to_run),
            self.renew(),
            self.rescue(),
            self.expire(),
            self.listen(),
            app.waiters.keep_looking(&app.pool),
            app.waiters.keep_leaving(&app.pool),
            app.stalls.run(),
        );
    }

    /// Waits up to `patience` for running tasks and then for `serving` to end. Requeues the remaining tasks as if
    /// they had never been claimed, and answers requests that still wait with 503.
    pub async fn drain(&self, serving: impl Future<Output = ()>, patience: Duration) {
        let mut serving = pin!(serving);
        let shutdown = &self.images.shutdown;
        let tasks = async {
            shutdown.tracker.wait().await;
            shutdown.stop_accepting();
        };
        let orderly = async { tokio::join!(tasks, serving.as_mut()) };
        let in_time = timeout(patience, orderly).await.is_ok();
        // Needed even in time: a request that arrived during shutdown may have started its task last.
        self.release_claims().await;
        if !in_time {
            self.images.waiters.dismiss();
            shutdown.stop_accepting();
            if timeout(LAST_ANSWERS, serving).await.is_err() {
                tracing::warn!("some responses could not be sent in time");
            }
        }
    }

    async fn release_claims(&self) {
        let claims = self.claims();
        if claims.is_empty() {
            return;
        }
        for running in self.lock().values() {
            running.lost.cancel();
        }
        let pool = &self.images.pool;
        let requeued = async { store::release_claims(&mut *pool.acquire().await?, &claims).await };
        match pool.in_time(requeued).await {
            Ok(tasks) => tracing::info!(tasks, "requeued running tasks"),
            Err(error) => tracing::warn!(
                error = &error as &dyn Error,
                "could not requeue running tasks; their leases will expire"
            ),
        }
    }

    /// Runs tasks that this process submitted and claimed in one transaction.
    async fn take_over(&self, mut to_run: mpsc::UnboundedReceiver<Claimed>) {
        while let Some(claimed) = to_run.recv().await {
            self.begin(claimed);
        }
    }

    /// Spawns the generation and settlement of a task. Only the loss of its lease stops it.
    fn begin(&self, claimed: Claimed) {
        let Claimed { claim, slot } = claimed;
        let task = &claim.task;
        let lost = CancellationToken::new();
        let under_way = self.enter(task, lost.clone());
        let worker = self.clone();
        let catalog = self.images.catalog();
        let model = catalog.model(&task.request.model);
        let was_limited = model.is_some_and(Model::is_limited);
        let span = tracing::info_span!("task", task.id = %task.id, account.id = %task.account_id);
        let run = async move {
            tokio::select! {
                biased;
                () = lost.cancelled() => tracing::warn!("stopped a task: its lease was lost or released"),
                () = worker.work_on(claim) => {}
            }
            drop(under_way);
            drop(slot);
            // With an empty queue, waking the claim loop would cost one query for every task that ends.
            if was_limited || worker.images.admission.is_backlogged() {
                worker.wake.notify_one();
            }
        };
        self.images.shutdown.tracker.spawn(run.instrument(span));
    }

    async fn work_on(&self, claim: Claim) {
        let ran = failed_if_it_panics(run::run(&self.images, &claim)).await;
        let task = claim.task;
        match ran {
            Ran::Ended(ending) => self.settle(task, ending).await,
            Ran::Again { attempt, wait } => self.requeue(&task, &attempt, wait).await,
            Ran::NotBegun => self.release_claim(&task).await,
        }
    }

    async fn settle(&self, task: Task, ending: Ending) {
        let ending = ending.storable();
        let began = task.created_at;
        let finished = Finished {
            task: Arc::new(task),
            ending: Arc::new(ending),
        };
        match self.images.settler.call(finished).await {
            Ok(Some(task)) => {
                let duration_ms = (self.images.clock.now() - began).num_milliseconds();
                tracing::info!(task.status = ?task.status, duration_ms, "ended a task");
            }
            Ok(None) => {
                tracing::warn!("did not settle a task: another worker has ended or claimed it");
            }
            Err(closed) => {
                tracing::error!(
                    error = &closed as &dyn Error,
                    "could not settle a task; its lease will expire"
                );
            }
        }
    }

    fn claims(&self) -> Vec<(TaskId, i64)> {
        self.lock()
            .iter()
            .map(|(id, running)| (*id, running.fence))
            .collect()
    }

    /// Registers a task for lease renewal until the returned guard is dropped.
    fn enter(&self, task: &Task, lost: CancellationToken) -> UnderWay {
        let (id, fence) = (task.id, task.fence);
        self.lock().insert(id, Running { fence, lost });
        UnderWay {
            running: Arc::clone(&self.running),
            id,
            fence,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns a panic into a failure of this one task, so that a bug does not stop the worker.
async fn failed_if_it_panics(work: impl Future<Output = Ran>) -> Ran {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|_| {
        let failure = Failure {
            kind: FailureKind::Internal,
            message: "the gateway failed while it worked on the task".to_owned(),
        };
        Ran::Ended(Ending::of(Outcome::Failed(failure)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_the_task_and_stops_renewing_its_lease() {
        let running: Arc<Mutex<HashMap<TaskId, Running>>> = Arc::default();
        let id = crate::ids::row_id();
        let entry = |fence| Running {
            fence,
            lost: CancellationToken::new(),
        };
        running.lock().unwrap().insert(id, entry(1));
        let under_way = UnderWay {
            running: Arc::clone(&running),
            id,
            fence: 1,
        };
        let unlucky = async {
            let _under_way = &under_way;
            panic!("unlucky")
        };

        let ran = failed_if_it_panics(unlucky).await;

        assert!(matches!(
            ran,
            Ran::Ended(Ending {
                outcome: Outcome::Failed(Failure {
                    kind: FailureKind::Internal,
                    ..
                }),
                ..
            })
        ));
        running.lock().unwrap().insert(id, entry(2));
        drop(under_way);
        assert!(
            running.lock().unwrap().contains_key(&id),
            "claimed anew meanwhile"
        );
        let running_again = UnderWay {
            running: Arc::clone(&running),
            id,
            fence: 2,
        };
        drop(running_again);
        assert!(running.lock().unwrap().is_empty());
    }
}
