//! Renews the leases of tasks running in this process, requeues tasks that other workers lost, and expires
//! tasks past their deadline. Each runs in its own loop, so that a delay in one does not block the others.

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Worker;
use crate::{db, images::expire, progress::Loop, tasks::store};

/// How often a lease is renewed within its duration.
const RENEWALS_A_LEASE: u32 = 5;
/// Maximum interval between two searches for lost tasks.
const RESCUE_INTERVAL_MAX: Duration = Duration::from_secs(3);
/// Interval between two searches for tasks past their deadline.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);

/// How long this process has reached the database without interruption. After an outage, the leases of all
/// workers have expired, and each worker needs time to renew its own. A process that treated those tasks as lost
/// would pay the upstreams again for all of them.
#[derive(Debug, Default)]
pub(super) struct Reachability(Mutex<Option<Reached>>);

#[derive(Clone, Copy, Debug)]
struct Reached {
    since: Instant,
    last: Instant,
}

impl Reachability {
    /// Records that the database could not be reached.
    pub(super) fn lost(&self) {
        *self.lock() = None;
    }

    /// Records a success at `now` and returns how long the database has been reachable. A gap of more than
    /// `gap_max` (a paused process) restarts the count, since the state during the gap is unknown.
    fn seen(&self, now: Instant, gap_max: Duration) -> Duration {
        let mut reached = self.lock();
        let before = reached.filter(|reached| now - reached.last <= gap_max);
        let since = before.map_or(now, |reached| reached.since);
        *reached = Some(Reached { since, last: now });
        now - since
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Reached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Renews the leases of running tasks, and cancels tasks whose lease was lost.
    pub(super) async fn renew(&self) {
        let lease = self.images.config.tasks.lease();
        loop {
            tokio::time::sleep(lease / RENEWALS_A_LEASE).await;
            if let Err(error) = self.renew_once(lease).await {
                self.reachability.lost();
                tracing::warn!(error = &error as &dyn Error, "could not renew leases");
            }
        }
    }

    async fn renew_once(&self, lease: Duration) -> sqlx::Result<()> {
        let claims = self.claims();
        if claims.is_empty() {
            return Ok(());
        }
        let attempt = self.images.progress.begin(Loop::Renew);
        let pool = &self.images.pool;
        let renewed = async { store::renew(&mut *db::acquire(pool).await?, &claims, lease).await };
        let kept = pool.in_time(renewed).await?;
        attempt.succeeded();
        let running = self.lock();
        for (id, fence) in claims.iter().filter(|(id, _)| !kept.contains(id)) {
            // A task that is no longer running ended while its lease was being renewed.
            if let Some(running) = running.get(id).filter(|running| running.fence == *fence) {
                running.lost.cancel();
            }
        }
        Ok(())
    }

    /// Requeues tasks that other workers lost, or fails those without attempts left.
    pub(super) async fn rescue(&self) {
        let interval =
            (self.images.config.tasks.lease() / RENEWALS_A_LEASE).min(RESCUE_INTERVAL_MAX);
        loop {
            let attempt = self.images.progress.begin(Loop::Rescue);
            match self.rescue_once().await {
                Ok(()) => attempt.succeeded(),
                Err(error) => {
                    self.reachability.lost();
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "could not search for lost tasks"
                    );
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// Requeues only after this process renewed its own leases and reached the database for one full lease: by
    /// then, every live worker has renewed its leases too.
    async fn rescue_once(&self) -> sqlx::Result<()> {
        let (app, lease) = (&self.images, self.images.config.tasks.lease());
        self.renew_once(lease).await?;
        let attempts_max = i16::try_from(app.config.tasks.attempts_max).unwrap_or(i16::MAX);
        let any_lost = async { store::is_any_lost(&mut *db::acquire(&app.pool).await?).await };
        let any_lost = app.pool.in_time(any_lost).await?;
        if self.reachability.seen(Instant::now(), lease * 3 / 4) < lease || !any_lost {
            return Ok(());
        }
        let requeued =
            async { store::requeue_lost(&mut *db::acquire(&app.pool).await?, attempts_max).await };
        if app.pool.in_time(requeued).await? > 0 {
            self.wake.notify_one();
        }
        expire::end_exhausted(app).await.map(drop)
    }

    /// Expires tasks past their deadline.
    pub(super) async fn expire(&self) {
        loop {
            let attempt = self.images.progress.begin(Loop::Expire);
            match expire::end_expired(&self.images).await {
                Ok(_) => attempt.succeeded(),
                Err(error) => tracing::warn!(
                    error = &error as &dyn Error,
                    "could not expire tasks past their deadline"
                ),
            }
            tokio::time::sleep(EXPIRE_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reachability_restarts_after_a_gap() {
        let reachability = Reachability::default();
        let began = Instant::now();
        let seen = |second| {
            let now = began + Duration::from_secs(second);
            reachability.seen(now, Duration::from_secs(7)).as_secs()
        };
        for second in 0..=20 {
            assert_eq!(seen(second), second);
        }
        assert_eq!(seen(28), 0, "paused meanwhile");
        assert_eq!(seen(31), 3);
        reachability.lost();
        assert_eq!(seen(32), 0, "lost meanwhile");
    }
}
