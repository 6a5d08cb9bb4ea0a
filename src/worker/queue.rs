//! The worker's side of the queue: claims tasks as slots become free, requeues failed attempts, and listens
//! for tasks that other processes queue or end.

use std::{error::Error, sync::Arc, time::Duration};

use super::Worker;
use crate::{
    clock::jittered,
    db::{self, Heard, Listener},
    ids::TaskId,
    images::{
        Claimed,
        dispatch::{self, Dispatched},
        run,
    },
    progress::Loop,
    tasks::{
        Attempt, Task, inquiry,
        store::{self, Line},
    },
};

/// Mean interval between two polls of the queue without a notification.
const POLL: Duration = Duration::from_secs(1);
/// Longest wait before the next try while another replica claims.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(20);
/// Interval between two attempts to reconnect the LISTEN connection.
const RECONNECT: Duration = Duration::from_secs(1);
/// Maximum number of tasks per claim.
const CLAIMED_AT_ONCE_MAX: usize = 128;

impl Worker {
    /// Claims tasks from the queue until shutdown begins. A shutdown waits for a claim in progress: a task that
    /// was claimed must be started.
    pub(super) async fn claim(&self) {
        let shutdown = &self.images.shutdown;
        while !shutdown.has_begun() {
            let attempt = self.images.progress.begin(Loop::Claim);
            let claimed = shutdown.tracker.track_future(self.claim_some()).await;
            if claimed.is_ok() {
                attempt.succeeded();
            }
            let wait = match claimed {
                Ok(Found::More) => continue,
                Ok(Found::Busy) => jittered(BUSY_WAIT_MAX, 0.25..=1.0),
                Ok(Found::Nothing) => jittered(POLL, 0.9..=1.1),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "could not claim tasks from the queue"
                    );
                    POLL
                }
            };
            // After each of these the next step is the same: claim again.
            tokio::select! {
                () = shutdown.begun() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn claim_some(&self) -> sqlx::Result<Found> {
        let (app, admission) = (&self.images, &self.images.admission);
        if app.storage.usable().is_err() {
            // Do not pay an upstream for images that cannot be stored.
            return Ok(Found::Nothing);
        }
        let any_waiting =
            async { store::is_any_waiting(&mut *db::acquire(&app.pool).await?).await };
        if !app.pool.in_time(any_waiting).await? {
            admission.set_backlogged(false);
            admission.backlog.clear();
            return Ok(Found::Nothing);
        }
        let slots = admission.free_slots(CLAIMED_AT_ONCE_MAX);
        if slots.is_empty() {
            admission.set_backlogged(true);
            return self.count().await;
        }
        let (claims, more) = match dispatch::claim(app, slots.len()).await? {
            Dispatched::Busy => return Ok(Found::Busy),
            Dispatched::Tasks { claims, more } => (claims, more),
        };
        admission.set_backlogged(more);
        for (claim, slot) in claims.into_iter().zip(slots) {
            let task = &claim.task;
            admission.backlog.remove(&Line {
                model: task.request.model.clone(),
                requirements: run::requirements(&task.request).column(),
                account_id: task.account_id,
            });
            self.begin(Claimed { claim, slot });
        }
        if more {
            return Ok(Found::More);
        }
        self.count().await
    }

    /// Counts the tasks left in the queue, which wait for a slot here, for capacity on a route, or for a retry time.
    async fn count(&self) -> sqlx::Result<Found> {
        let most = self.images.config.tasks.queued_max.saturating_add(1);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let (pool, backlog) = (&self.images.pool, &self.images.admission.backlog);
        let counted = async { backlog.count(&mut *db::acquire(pool).await?, most).await };
        pool.in_time(counted).await?;
        Ok(Found::Nothing)
    }

    /// Requeues a task to be claimed again after `wait`. If the update fails, the task's lease expires.
    pub(super) async fn requeue(&self, task: &Task, attempt: &Attempt, wait: Duration) {
        let claim = (task.id, task.fence);
        let attempt = &attempt.clone().storable();
        let requeue = async {
            let mut conn = db::acquire(&self.images.pool).await?;
            store::requeue(&mut conn, claim, attempt, wait).await
        };
        match self.images.pool.in_time(requeue).await {
            Ok(true) => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(
                    route = attempt.route,
                    wait_ms,
                    "requeued a task for another attempt"
                );
                self.wake_after(wait);
            }
            Ok(false) => {
                tracing::warn!(
                    "did not requeue a failed task: another worker has claimed or ended it"
                );
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn Error,
                    "could not requeue a task; its lease will expire"
                );
            }
        }
    }

    /// Requeues a task as if it had never been claimed. If the update fails, the task's lease expires.
    pub(super) async fn release_claim(&self, task: &Task) {
        let requeued = async {
            let mut conn = db::acquire(&self.images.pool).await?;
            store::release_claims(&mut conn, &[(task.id, task.fence)]).await
        };
        match self.images.pool.in_time(requeued).await {
            Ok(_) => tracing::debug!("requeued an unstarted task"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn Error,
                    "could not requeue a task; its lease will expire"
                );
            }
        }
    }

    fn wake_after(&self, wait: Duration) {
        let (wake, shutdown) = (Arc::clone(&self.wake), self.images.shutdown.clone());
        self.images.shutdown.tracker.spawn(async move {
            tokio::select! {
                () = shutdown.begun() => {}
                () = tokio::time::sleep(wait) => wake.notify_one(),
            }
        });
    }

    /// Listens for tasks that other processes queue or end, and for configuration reloads. Reconnects on errors.
    pub(super) async fn listen(&self) {
        let (app, channels) = (
            &self.images,
            [
                store::QUEUED_CHANNEL,
                store::ENDED_CHANNEL,
                store::ASKED_CHANNEL,
                store::REPLIED_CHANNEL,
                db::RELOAD_CHANNEL,
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
                "LISTEN connection lost, reconnecting"
            );
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Handles notifications until the connection is lost, and returns the error that ended it.
    async fn hear(&self, mut listener: Listener) -> sqlx::Error {
        loop {
            let attempt = self.images.progress.begin(Loop::Listen);
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
        let app = &self.images;
        let handled = match channel {
            store::QUEUED_CHANNEL => {
                self.wake.notify_one();
                Ok(())
            }
            db::RELOAD_CHANNEL => {
                app.reload.notify_one();
                Ok(())
            }
            store::ASKED_CHANNEL => inquiry::reply(&app.pool, &app.waiters, payload).await,
            store::REPLIED_CHANNEL => app.inquiries.replied(payload),
            _ => {
                let ids = payload.split(',').filter_map(|id| id.parse().ok());
                let ids: Vec<TaskId> = ids.collect();
                app.waiters.look_at(&app.pool, &ids).await
            }
        };
        if let Err(error) = handled {
            tracing::warn!(
                error = &error as &dyn Error,
                notification.channel = channel,
                "could not act on a notification"
            );
        }
    }
}

enum Found {
    /// More tasks may be claimable than there were slots.
    More,
    /// Another replica is claiming; try again shortly.
    Busy,
    /// No task can be claimed now.
    Nothing,
}
