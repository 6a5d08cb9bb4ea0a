//! Keeps the leases of what is under way here, and sees to the tasks whose worker was lost.

use std::{error::Error, time::Duration};

use super::Worker;
use crate::{
    images::run::Ending,
    tasks::{Failure, FailureKind, Outcome, store},
};

/// A lease is renewed so many times before it would run out.
const RENEWALS_A_LEASE: u32 = 3;
const HOPELESS_AT_ONCE_MAX: i64 = 100;

impl Worker {
    /// Keeps the leases of what is under way, and stops what was lost; sees to what others lost.
    pub(super) async fn renew(&self) {
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
            self.settle(task, Ending::of(Outcome::Failed(failure)))
                .await;
        }
        Ok(())
    }
}
