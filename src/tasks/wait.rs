//! Waiting for tasks to end, without a connection for each who waits: this process's own tasks say so
//! themselves; for those that ended elsewhere there is LISTEN, and a look every second in case a
//! notification was lost. Who stops waiting is written down, so that a retry may join the task.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{Summary, repeats, store};
use crate::{db, ids::TaskId};

/// How often those who wait are looked up, notified or not.
const POLL: Duration = Duration::from_secs(1);
/// For how long those who leave are gathered. Clients come back after half a second at the soonest.
const GATHER: Duration = Duration::from_millis(50);
/// Between two tries to write down who left.
const RETRY: Duration = Duration::from_millis(500);
/// How many of them are kept while that fails. A retry of one that is forgotten is a new request.
const LEFT_MAX: usize = 100_000;

/// All who wait in this process.
#[derive(Clone)]
pub struct Waiters {
    /// What the database knows this process by.
    process: i32,
    waiting: Arc<Mutex<HashMap<TaskId, Waiting>>>,
    left: Arc<Left>,
}

/// The tasks whose last waiter here has gone, until that is written down.
#[derive(Default)]
struct Left {
    ids: Mutex<Vec<TaskId>>,
    changed: Notify,
}

/// How a wait came to its end.
#[derive(Debug)]
pub enum Waited {
    Ended(Arc<Summary>),
    /// The process ends.
    Dismissed,
    /// It took longer than was allowed.
    TooLong,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            process: rand::random_range(1..=i32::MAX),
            waiting: Arc::default(),
            left: Arc::default(),
        }
    }
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

    /// What the database knows this process by.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// This process, if somebody here waits for a task.
    pub fn waiter_of(&self, id: TaskId) -> Option<i32> {
        self.has(id).then_some(self.process)
    }

    /// Writes down, soon, that nobody here waits for a task, if that is so.
    pub fn check(&self, id: TaskId) {
        if !self.has(id) {
            self.left.add(id);
        }
    }

    /// Looks up those of some tasks that somebody waits for, and wakes who waits for one that has ended.
    pub async fn look_at(&self, pool: &db::Pool, ids: &[TaskId]) -> sqlx::Result<()> {
        let awaited: Vec<TaskId> = ids.iter().copied().filter(|id| self.has(*id)).collect();
        if awaited.is_empty() {
            return Ok(());
        }
        let ended = async { store::ended_among(&mut *db::acquire(pool).await?, &awaited).await };
        for task in pool.in_time(ended).await? {
            self.ended(Arc::new(task));
        }
        Ok(())
    }

    /// Ends every wait without a task.
    pub fn dismiss(&self) {
        self.lock().clear();
    }

    /// Writes down who has stopped waiting, for ever.
    pub async fn keep_leaving(&self, pool: &db::Pool) {
        loop {
            self.left.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let ids = self.left.take();
            let noted =
                async { repeats::leave(&mut *db::acquire(pool).await?, &ids, self.process).await };
            if let Err(error) = pool.in_time(noted).await {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "that callers have gone could not be written down yet"
                );
                tokio::time::sleep(RETRY).await;
                for id in ids {
                    self.left.add(id);
                }
            }
        }
    }

    /// Looks all of them up every second, for ever.
    pub async fn keep_looking(&self, pool: &db::Pool) {
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

impl Left {
    fn add(&self, id: TaskId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() < LEFT_MAX {
            ids.push(id);
        }
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<TaskId> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Subscription {
    /// The task, once it has ended.
    pub async fn ended(mut self, within: Duration) -> Waited {
        let Ok(ended) = timeout(within, self.ended.wait_for(Option::is_some)).await else {
            return Waited::TooLong;
        };
        let task = ended.ok().and_then(|task| task.clone());
        task.map_or(Waited::Dismissed, Waited::Ended)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if let Some(entry) = waiting.get_mut(&self.id) {
            entry.subscriptions -= 1;
            if entry.subscriptions == 0 {
                waiting.remove(&self.id);
                if self.ended.borrow().is_none() {
                    self.waiters.left.add(self.id);
                }
            }
        }
    }
}
