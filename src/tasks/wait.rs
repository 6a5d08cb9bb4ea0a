//! Waiting for tasks to end, without a connection for each who waits: this process's own tasks say so
//! themselves; for those that ended elsewhere there is LISTEN, and a look every second in case a
//! notification was lost.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::PgPool;
use tokio::sync::watch;

use super::{Summary, store};
use crate::{db, ids::TaskId};

/// How often those who wait are looked up, notified or not.
const POLL: Duration = Duration::from_secs(1);

/// All who wait in this process.
#[derive(Clone, Default)]
pub struct Waiters {
    waiting: Arc<Mutex<HashMap<TaskId, Waiting>>>,
}

struct Waiting {
    ended: watch::Sender<Option<Arc<Summary>>>,
    subscriptions: usize,
}

/// One who waits for one task; dropping it ends the wait.
pub struct Subscription {
    id: TaskId,
    ended: watch::Receiver<Option<Arc<Summary>>>,
    waiters: Waiters,
}

impl Waiters {
    /// Begins to wait. A task that ended before is found at the next look.
    pub fn subscribe(&self, id: TaskId) -> Subscription {
        let mut waiting = self.lock();
        let entry = waiting.entry(id).or_insert_with(|| Waiting {
            ended: watch::channel(None).0,
            subscriptions: 0,
        });
        entry.subscriptions += 1;
        Subscription {
            id,
            ended: entry.ended.subscribe(),
            waiters: self.clone(),
        }
    }

    /// Wakes those who wait for a task that has ended.
    pub fn ended(&self, task: Arc<Summary>) {
        if let Some(waiting) = self.lock().get(&task.id) {
            waiting.ended.send_replace(Some(task));
        }
    }

    /// Whether somebody here waits for a task.
    pub fn has(&self, id: TaskId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Looks up those of some tasks that somebody waits for, and wakes who waits for one that has ended.
    pub async fn look_at(&self, pool: &PgPool, ids: &[TaskId]) -> sqlx::Result<()> {
        let awaited: Vec<TaskId> = ids.iter().copied().filter(|id| self.has(*id)).collect();
        if awaited.is_empty() {
            return Ok(());
        }
        for task in store::ended_among(&mut *db::acquire(pool).await?, &awaited).await? {
            self.ended(Arc::new(task));
        }
        Ok(())
    }

    /// Ends every wait without a task.
    pub fn dismiss(&self) {
        self.lock().clear();
    }

    /// Looks all of them up every second, for ever.
    pub async fn keep_looking(&self, pool: &PgPool) {
        loop {
            tokio::time::sleep(POLL).await;
            let ids: Vec<TaskId> = self.lock().keys().copied().collect();
            if let Err(error) = self.look_at(pool, &ids).await {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "awaited tasks could not be looked up"
                );
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The task, once it has ended; `None` if the wait was ended first.
    pub async fn ended(mut self) -> Option<Arc<Summary>> {
        let task = self.ended.wait_for(Option::is_some).await;
        task.ok().and_then(|task| task.clone())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if let Some(entry) = waiting.get_mut(&self.id) {
            entry.subscriptions -= 1;
            if entry.subscriptions == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}
