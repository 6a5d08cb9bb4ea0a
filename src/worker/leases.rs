//! Keeps the leases of what is under way here, and sees to the tasks that others lost or that are past their
//! deadline. Each in a loop of its own: what holds one up leaves the others going.

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Worker;
use crate::{db, images::expire, progress::Loop, tasks::store};

/// A lease is renewed so many times before it would run out.
const RENEWALS_A_LEASE: u32 = 5;
/// Between two looks for lost tasks, at most.
const RESCUE_INTERVAL_MAX: Duration = Duration::from_secs(3);
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);

/// Since when the database has been in reach without a break, as far as is known here. When it comes back, the
/// leases of all workers have run out, and each needs time to renew its own: whoever took them for lost would buy
/// everything again.
#[derive(Debug, Default)]
pub(super) struct Reachability(Mutex<Option<Reached>>);

#[derive(Clone, Copy, Debug)]
struct Reached {
    since: Instant,
    last: Instant,
}

impl Reachability {
    pub(super) fn lost(&self) {
        *self.lock() = None;
    }

    /// For how long, after a success now. A process that was paused for longer than `gap_max` knows nothing of
    /// what was meanwhile.
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
    /// Keeps the leases of what is under way, and stops what was lost.
    pub(super) async fn renew(&self) {
        let lease = self.app.config.tasks.lease();
        loop {
            tokio::time::sleep(lease / RENEWALS_A_LEASE).await;
            if let Err(error) = self.renew_once(lease).await {
                self.reachability.lost();
                tracing::warn!(error = &error as &dyn Error, "leases could not be renewed");
            }
        }
    }

    async fn renew_once(&self, lease: Duration) -> sqlx::Result<()> {
        let claims = self.claims();
        if claims.is_empty() {
            return Ok(());
        }
        let attempt = self.app.progress.begin(Loop::Renew);
        let pool = &self.app.pool;
        let renewed = async { store::renew(&mut *db::acquire(pool).await?, &claims, lease).await };
        let kept = pool.in_time(renewed).await?;
        attempt.succeeded();
        let running = self.lock();
        for (id, fence) in claims.iter().filter(|(id, _)| !kept.contains(id)) {
            // One that is not running any more ended while its lease was being renewed.
            if let Some(running) = running.get(id).filter(|running| running.fence == *fence) {
                running.lost.cancel();
            }
        }
        Ok(())
    }

    /// Passes on, or ends, what other workers have lost.
    pub(super) async fn rescue(&self) {
        let interval = (self.app.config.tasks.lease() / RENEWALS_A_LEASE).min(RESCUE_INTERVAL_MAX);
        loop {
            let attempt = self.app.progress.begin(Loop::Rescue);
            match self.rescue_once().await {
                Ok(()) => attempt.succeeded(),
                Err(error) => {
                    self.reachability.lost();
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "lost tasks could not be looked for"
                    );
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// Only once a renewal of our own has succeeded, and the database was in reach for a lease: then who lives
    /// has renewed its leases too.
    async fn rescue_once(&self) -> sqlx::Result<()> {
        let (app, lease) = (&self.app, self.app.config.tasks.lease());
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

    /// Ends what is past its deadline.
    pub(super) async fn expire(&self) {
        loop {
            let attempt = self.app.progress.begin(Loop::Expire);
            match expire::end_expired(&self.app).await {
                Ok(_) => attempt.succeeded(),
                Err(error) => tracing::warn!(
                    error = &error as &dyn Error,
                    "tasks past their deadline could not be ended yet"
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
    fn what_was_out_of_reach_begins_anew() {
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
