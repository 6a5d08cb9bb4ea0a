//! Works on tasks: claims them as places come free, keeps their leases, has them drawn and settled, and
//! sees to those whose worker was lost.

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use sqlx::postgres::PgListener;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    ids::TaskId,
    images::{Claimed, run, settle::Finished},
    tasks::{Failure, FailureKind, Outcome, Task, store},
};

/// How often the queue is looked at, notified or not; and by how much at most that is put off, so that
/// replicas do not all look at once.
const POLL: Duration = Duration::from_millis(900);
const POLL_JITTER_MS: u64 = 200;
/// Between two tries to listen, when the database is away.
const RECONNECT: Duration = Duration::from_secs(1);
/// A lease is renewed so many times before it would run out.
const RENEWALS_A_LEASE: u32 = 3;
/// At the end of a shutdown, for the answers to those who waited in vain.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const CLAIMED_AT_ONCE_MAX: usize = 128;
const HOPELESS_AT_ONCE_MAX: i64 = 100;

/// Claims until the shutdown begins; then ends what is under way, or gives it back.
#[derive(Clone)]
pub struct Worker {
    app: App,
    running: Arc<Mutex<HashMap<TaskId, Running>>>,
    /// Something may be in the queue, or a place has come free.
    wake: Arc<Notify>,
}

struct Running {
    fence: i64,
    lost: CancellationToken,
}

impl Worker {
    pub fn new(app: App) -> Self {
        Self {
            app,
            running: Arc::default(),
            wake: Arc::default(),
        }
    }

    /// Runs all loops of the worker. All but that over the queue go on through a shutdown, for as long as
    /// something is under way here or awaited: leases are kept, and who waits hears what others end.
    pub async fn run(self, to_run: mpsc::UnboundedReceiver<Claimed>) {
        let app = &self.app;
        let until_shutdown = async {
            tokio::select! {
                () = app.shutdown.begun() => {}
                () = self.claim() => {}
            }
        };
        tokio::join!(
            until_shutdown,
            self.take_over(to_run),
            self.renew(),
            self.listen(),
            app.waiters.keep_looking(&app.pool),
        );
    }

    /// Lets what is under way end, and then `serving`, within `patience`. The rest goes back to the queue
    /// as if it had not been begun, and who waits is told to come again.
    pub async fn drain(&self, serving: impl Future<Output = ()>, patience: Duration) {
        let mut serving = pin!(serving);
        let shutdown = &self.app.shutdown;
        let tasks = async {
            shutdown.tracker.wait().await;
            shutdown.close_doors();
        };
        let orderly = async { tokio::join!(tasks, serving.as_mut()) };
        let in_time = timeout(patience, orderly).await.is_ok();
        // Even in time: a request may have come with the shutdown and begun its task last.
        self.give_back().await;
        if !in_time {
            self.app.waiters.dismiss();
            shutdown.close_doors();
            if timeout(LAST_ANSWERS, serving).await.is_err() {
                tracing::warn!("some answers could not be sent in time");
            }
        }
    }

    async fn give_back(&self) {
        let claims = self.claims();
        if claims.is_empty() {
            return;
        }
        for running in self.lock().values() {
            running.lost.cancel();
        }
        let given_back =
            async { store::unclaim(&mut *self.app.pool.acquire().await?, &claims).await };
        match given_back.await {
            Ok(tasks) => tracing::info!(tasks, "gave tasks back to the queue"),
            Err(error) => tracing::warn!(
                error = &error as &dyn Error,
                "tasks could not be given back; their leases will run out"
            ),
        }
    }

    /// Tasks that this process submitted and claimed in one.
    async fn take_over(&self, mut to_run: mpsc::UnboundedReceiver<Claimed>) {
        while let Some(claimed) = to_run.recv().await {
            self.begin(claimed);
        }
    }

    /// Tasks from the queue.
    async fn claim(&self) {
        loop {
            match self.claim_some().await {
                Ok(Found::Some) => continue,
                Ok(Found::Nothing) => {}
                Err(error) => tracing::warn!(
                    error = &error as &dyn Error,
                    "the queue could not be looked at"
                ),
            }
            let jitter = Duration::from_millis(rand::random_range(0..POLL_JITTER_MS));
            // Either way the next thing to do is the same: to look.
            drop(timeout(POLL + jitter, self.wake.notified()).await);
        }
    }

    async fn claim_some(&self) -> sqlx::Result<Found> {
        let mut slots = Vec::new();
        while slots.len() < CLAIMED_AT_ONCE_MAX
            && let Ok(slot) = Arc::clone(&self.app.slots).try_acquire_owned()
        {
            slots.push(slot);
        }
        if slots.is_empty() {
            let queued_max = self.app.config.tasks.queued_max;
            let mut conn = self.app.pool.acquire().await?;
            let queued = store::count_queued(&mut conn, queued_max.saturating_add(1)).await?;
            self.app.queued.store(queued, Ordering::Relaxed);
            return Ok(Found::Nothing);
        }
        let limit = i64::try_from(slots.len()).unwrap_or(i64::MAX);
        let lease = self.app.config.tasks.lease();
        let tasks = store::claim(&mut *self.app.pool.acquire().await?, limit, lease).await?;
        let found = if tasks.len() == slots.len() {
            Found::Some
        } else {
            self.app.queued.store(0, Ordering::Relaxed);
            Found::Nothing
        };
        for (task, slot) in tasks.into_iter().zip(slots) {
            self.begin(Claimed { task, slot });
        }
        Ok(found)
    }

    /// Has a task drawn and settled, whatever becomes of anything but its lease.
    fn begin(&self, Claimed { task, slot }: Claimed) {
        let lost = CancellationToken::new();
        self.lock().insert(
            task.id,
            Running {
                fence: task.fence,
                lost: lost.clone(),
            },
        );
        let worker = self.clone();
        self.app.shutdown.tracker.spawn(async move {
            let (id, fence) = (task.id, task.fence);
            tokio::select! {
                biased;
                () = lost.cancelled() => tracing::warn!(task.id = %id, "lost a task: its lease had run out"),
                () = worker.work_on(task) => {}
            }
            worker.forget(id, fence);
            drop(slot);
            // Where nothing waits, a look at the queue for every task that ends would cost a query each.
            if worker.app.queued.load(Ordering::Relaxed) > 0 {
                worker.wake.notify_one();
            }
        });
    }

    async fn work_on(&self, task: Task) {
        let outcome = run::run(&self.app, &task).await;
        self.settle(task, outcome).await;
    }

    async fn settle(&self, task: Task, outcome: Outcome) {
        let (id, began) = (task.id, task.created_at);
        let finished = Finished {
            task: Arc::new(task),
            outcome: Arc::new(outcome),
        };
        match self.app.settler.call(finished).await {
            Ok(Some(task)) => {
                let duration_ms = (self.app.clock.now() - began).num_milliseconds();
                tracing::info!(task.id = %id, account.id = %task.account_id, task.status = ?task.status, duration_ms, "ended a task");
            }
            Ok(None) => {
                tracing::warn!(task.id = %id, "a task had been ended or claimed by another worker; nothing was changed");
            }
            Err(closed) => {
                tracing::error!(task.id = %id, error = &closed as &dyn Error, "a task could not be settled; its lease will run out");
            }
        }
    }

    /// Keeps the leases of what is under way, and stops what was lost; sees to what others lost.
    async fn renew(&self) {
        let lease = self.app.config.tasks.lease();
        loop {
            tokio::time::sleep(lease / RENEWALS_A_LEASE).await;
            if let Err(error) = self.renew_once(lease).await {
                tracing::warn!(error = &error as &dyn Error, "leases could not be renewed");
            }
            if let Err(error) = self.see_to_lost().await {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "lost tasks could not be looked for"
                );
            }
        }
    }

    async fn renew_once(&self, lease: Duration) -> sqlx::Result<()> {
        let claims = self.claims();
        if claims.is_empty() {
            return Ok(());
        }
        let kept = store::renew(&mut *self.app.pool.acquire().await?, &claims, lease).await?;
        let running = self.lock();
        for (id, fence) in claims.iter().filter(|(id, _)| !kept.contains(id)) {
            // One that is not running any more ended while its lease was being renewed.
            if let Some(running) = running.get(id).filter(|running| running.fence == *fence) {
                running.lost.cancel();
            }
        }
        Ok(())
    }

    async fn see_to_lost(&self) -> sqlx::Result<()> {
        let attempts_max = i16::try_from(self.app.config.tasks.attempts_max).unwrap_or(i16::MAX);
        let mut conn = self.app.pool.acquire().await?;
        if store::requeue_lost(&mut conn, attempts_max).await? > 0 {
            self.wake.notify_one();
        }
        let hopeless = store::hopeless(&mut conn, attempts_max, HOPELESS_AT_ONCE_MAX).await?;
        drop(conn);
        for task in hopeless {
            let failure = if task.left.is_zero() {
                (FailureKind::Deadline, "the task ran past its deadline")
            } else {
                (
                    FailureKind::Internal,
                    "the task was begun several times and never ended",
                )
            };
            let failure = Failure {
                kind: failure.0,
                message: failure.1.to_owned(),
            };
            self.settle(task, Outcome::Failed(failure)).await;
        }
        Ok(())
    }

    /// Hears what other processes queue and end.
    async fn listen(&self) {
        loop {
            if let Err(error) = self.hear().await {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "stopped hearing of tasks, trying again"
                );
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn hear(&self) -> sqlx::Result<()> {
        let mut listener = PgListener::connect_with(&self.app.pool).await?;
        listener
            .listen_all([store::QUEUED_CHANNEL, store::ENDED_CHANNEL])
            .await?;
        loop {
            let notification = listener.recv().await?;
            if notification.channel() == store::QUEUED_CHANNEL {
                self.wake.notify_one();
                continue;
            }
            let ids: Vec<TaskId> = notification
                .payload()
                .split(',')
                .filter_map(|id| id.parse().ok())
                .collect();
            self.app.waiters.look_at(&self.app.pool, &ids).await?;
        }
    }

    fn claims(&self) -> Vec<(TaskId, i64)> {
        self.lock()
            .iter()
            .map(|(id, running)| (*id, running.fence))
            .collect()
    }

    fn forget(&self, id: TaskId, fence: i64) {
        let mut running = self.lock();
        if running
            .get(&id)
            .is_some_and(|running| running.fence == fence)
        {
            running.remove(&id);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found {
    Some,
    Nothing,
}
