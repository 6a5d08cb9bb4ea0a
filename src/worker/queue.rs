//! The queue as the worker sees it: what comes next is claimed as places come free, what failed goes
//! back, and what other processes queue and end is heard of.

use std::{
    error::Error,
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::Worker;
use crate::{
    db::{self, Heard, Listener},
    ids::TaskId,
    images::{
        Claimed,
        dispatch::{self, Dispatched},
        run,
    },
    progress::Loop,
    tasks::{
        Attempt, Task,
        store::{self, Line},
    },
};

/// How often the queue is looked at, notified or not; and by how much at most that is put off, so that
/// replicas do not all look at once.
const POLL: Duration = Duration::from_millis(900);
const POLL_JITTER_MAX: Duration = Duration::from_millis(200);
/// Until another worker has done with the queue.
const BUSY_WAIT: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_millis(20);
/// Between two tries to listen, when the database is away.
const RECONNECT: Duration = Duration::from_secs(1);
const CLAIMED_AT_ONCE_MAX: usize = 128;

impl Worker {
    /// Tasks from the queue, until the shutdown begins. A shutdown waits for a look that is under way: what
    /// was claimed must be begun.
    pub(super) async fn claim(&self) {
        let shutdown = &self.app.shutdown;
        while !shutdown.has_begun() {
            let attempt = self.app.progress.begin(Loop::Claim);
            let claimed = shutdown.tracker.track_future(self.claim_some()).await;
            if claimed.is_ok() {
                attempt.succeeded();
            }
            let wait = match claimed {
                Ok(Found::More) => continue,
                Ok(Found::Busy) => rand::random_range(BUSY_WAIT),
                Ok(Found::Nothing) => POLL + rand::random_range(Duration::ZERO..POLL_JITTER_MAX),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "the queue could not be looked at"
                    );
                    POLL
                }
            };
            // However it ends the next thing to do is the same: to look.
            tokio::select! {
                () = shutdown.begun() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn claim_some(&self) -> sqlx::Result<Found> {
        let app = &self.app;
        if app.storage.usable().is_err() {
            // What could not be stored is not to be bought.
            return Ok(Found::Nothing);
        }
        let any_waiting =
            async { store::is_any_waiting(&mut *db::acquire(&app.pool).await?).await };
        if !app.pool.in_time(any_waiting).await? {
            app.backlogged.store(false, Ordering::Relaxed);
            app.backlog.clear();
            return Ok(Found::Nothing);
        }
        let mut slots = Vec::new();
        while slots.len() < CLAIMED_AT_ONCE_MAX
            && let Ok(slot) = Arc::clone(&app.slots).try_acquire_owned()
        {
            slots.push(slot);
        }
        if slots.is_empty() {
            app.backlogged.store(true, Ordering::Relaxed);
            return self.count().await;
        }
        let (tasks, more) = match dispatch::claim(app, slots.len()).await? {
            Dispatched::Busy => return Ok(Found::Busy),
            Dispatched::Tasks { tasks, more } => (tasks, more),
        };
        app.backlogged.store(more, Ordering::Relaxed);
        for ((task, assignment), slot) in tasks.into_iter().zip(slots) {
            app.backlog.remove(&Line {
                model: task.request.model.clone(),
                requirements: run::requirements(&task.request).column(),
                account_id: task.account_id,
            });
            self.begin(Claimed {
                task,
                assignment,
                slot,
            });
        }
        if more {
            return Ok(Found::More);
        }
        self.count().await
    }

    /// What is left waits: for a place here, for room on its route, or for its time.
    async fn count(&self) -> sqlx::Result<Found> {
        let most = self.app.config.tasks.queued_max.saturating_add(1);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let (pool, backlog) = (&self.app.pool, &self.app.backlog);
        let counted = async { backlog.count(&mut *db::acquire(pool).await?, most).await };
        pool.in_time(counted).await?;
        Ok(Found::Nothing)
    }

    /// Leaves a task to the queue until it may be tried again. If that fails, its lease runs out.
    pub(super) async fn requeue(&self, task: &Task, attempt: &Attempt, wait: Duration) {
        let (id, claim) = (task.id, (task.id, task.fence));
        let attempt = &attempt.clone().storable();
        let requeue = async {
            let mut conn = db::acquire(&self.app.pool).await?;
            store::requeue(&mut conn, claim, attempt, wait).await
        };
        match self.app.pool.in_time(requeue).await {
            Ok(true) => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(task.id = %id, route = attempt.route, wait_ms, "a task is tried again");
                self.wake_after(wait);
            }
            Ok(false) => {
                tracing::warn!(task.id = %id, "a task was another worker's by the time it had failed");
            }
            Err(error) => {
                tracing::error!(task.id = %id, error = &error as &dyn Error, "a task could not be put back; its lease will run out");
            }
        }
    }

    /// Leaves a task to the queue as if it had not been begun. If that fails, its lease runs out.
    pub(super) async fn release_claim(&self, task: &Task) {
        let requeued = async {
            let mut conn = db::acquire(&self.app.pool).await?;
            store::release_claims(&mut conn, &[(task.id, task.fence)]).await
        };
        match self.app.pool.in_time(requeued).await {
            Ok(_) => tracing::debug!(task.id = %task.id, "a task waits for its route"),
            Err(error) => {
                tracing::error!(task.id = %task.id, error = &error as &dyn Error, "a task could not be requeued; its lease will run out");
            }
        }
    }

    fn wake_after(&self, wait: Duration) {
        let (wake, shutdown) = (Arc::clone(&self.wake), self.app.shutdown.clone());
        self.app.shutdown.tracker.spawn(async move {
            tokio::select! {
                () = shutdown.begun() => {}
                () = tokio::time::sleep(wait) => wake.notify_one(),
            }
        });
    }

    /// Hears what other processes queue and end.
    pub(super) async fn listen(&self) {
        let (app, channels) = (
            &self.app,
            [
                store::QUEUED_CHANNEL,
                store::ENDED_CHANNEL,
                store::RELOAD_CHANNEL,
            ],
        );
        loop {
            let attempt = app.progress.begin(Loop::Listen);
            let listener = Listener::open(&app.pool, &channels, app.waiters.process()).await;
            let stopped = match listener {
                Ok(listener) => {
                    attempt.succeeded();
                    self.hear(listener).await
                }
                Err(error) => error,
            };
            tracing::warn!(
                error = &stopped as &dyn Error,
                "stopped hearing of tasks, trying again"
            );
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Hears until the connection is lost.
    async fn hear(&self, mut listener: Listener) -> sqlx::Error {
        loop {
            let attempt = self.app.progress.begin(Loop::Listen);
            match listener.hear().await {
                Ok(Heard::Notification(notification)) => {
                    self.notified(notification.channel(), notification.payload())
                        .await;
                }
                Ok(Heard::Nothing) => {}
                Err(error) => {
                    listener.bury().await;
                    return error;
                }
            }
            attempt.succeeded();
        }
    }

    async fn notified(&self, channel: &str, payload: &str) {
        match channel {
            store::QUEUED_CHANNEL => self.wake.notify_one(),
            store::RELOAD_CHANNEL => self.app.reload.notify_one(),
            _ => {
                let ids = payload.split(',').filter_map(|id| id.parse().ok());
                let ids: Vec<TaskId> = ids.collect();
                if let Err(error) = self.app.waiters.look_at(&self.app.pool, &ids).await {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "ended tasks are looked up at the next look"
                    );
                }
            }
        }
    }
}

enum Found {
    /// Maybe more than there were places for.
    More,
    /// Look again in a moment.
    Busy,
    Nothing,
}
