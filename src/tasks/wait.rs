//! Waits for tasks to end, without a database connection per waiter. Tasks of this process wake
//! their waiters directly; for others there is LISTEN, and a poll every second in case a
//! notification was lost. Records callers that stopped waiting, so that a retry can join the task.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{Summary, store};
use crate::{db, ids::TaskId};

/// How often awaited tasks are looked up, notified or not.
const POLL: Duration = Duration::from_secs(1);
/// How long disconnected callers are collected. Clients retry after half a second at the earliest.
const GATHER: Duration = Duration::from_millis(50);
/// Between two attempts to record who stopped waiting.
const RETRY: Duration = Duration::from_millis(500);
/// How many are kept while recording fails. Beyond that, a retry becomes a new request.
const LEFT_MAX: usize = 100_000;

/// All waiters of this process.
#[derive(Clone)]
pub struct Waiters {
    /// Identifies this process in the database.
    process: i32,
    waiting: Arc<Mutex<HashMap<TaskId, Waiting>>>,
    left: Arc<Left>,
}

/// Tasks whose last waiter in this process has stopped waiting, until that is recorded.
#[derive(Default)]
struct Left {
    ids: Mutex<LeftIds>,
    changed: Notify,
}

#[derive(Default)]
struct LeftIds {
    pending: HashSet<TaskId>,
    /// Being recorded at this moment.
    recording: HashSet<TaskId>,
}

/// How a wait ended.
#[derive(Debug)]
pub enum Waited {
    /// The task has ended.
    Ended(Arc<Summary>),
    /// The process is shutting down.
    Dismissed,
    /// The wait exceeded its limit.
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

/// A waiter for one task. Dropping it ends the wait.
pub struct Subscription {
    id: TaskId,
    ended: watch::Receiver<Option<Arc<Summary>>>,
    waiters: Waiters,
}

impl Waiters {
    /// Starts to wait. A task that has already ended is found by the next poll.
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

    /// Wakes the waiters of a task that has ended.
    pub fn ended(&self, task: Arc<Summary>) {
        if let Some(waiting) = self.lock().get(&task.id) {
            waiting.ended.send_replace(Some(task));
        }
    }

    /// Whether anyone in this process waits for a task.
    pub fn has(&self, id: TaskId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Whether the caller of a task has left this process, which may not be recorded yet.
    pub fn has_left(&self, id: TaskId) -> bool {
        !self.has(id) && self.left.contains(id)
    }

    /// Identifies this process in the database.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// This process's number, if anyone here waits for the task.
    pub fn waiter_of(&self, id: TaskId) -> Option<i32> {
        self.has(id).then_some(self.process)
    }

    /// Records soon that nobody here waits for the task, if so.
    pub fn check(&self, id: TaskId) {
        if !self.has(id) {
            self.left.add(id);
        }
    }

    /// Looks up those of these tasks that have waiters, and wakes the waiters of those that have ended.
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

    /// Ends every wait without a result. The callers are told to retry, and get these tasks then.
    pub fn dismiss(&self) {
        let dismissed: Vec<TaskId> = self.lock().drain().map(|(id, _)| id).collect();
        for id in dismissed {
            self.left.add(id);
        }
    }

    /// Records who has stopped waiting. Never returns.
    pub async fn keep_leaving(&self, pool: &db::Pool) {
        loop {
            self.left.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let ids = self.left.begin_recording();
            let noted = async {
                store::remove_waiter(&mut *db::acquire(pool).await?, &ids, self.process).await
            };
            match pool.in_time(noted).await {
                Ok(()) => self.left.recorded(),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "could not record yet which callers stopped waiting"
                    );
                    tokio::time::sleep(RETRY).await;
                    self.left.record_again();
                }
            }
        }
    }

    /// Looks up all awaited tasks every second. Never returns.
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
        let mut ids = self.lock();
        if ids.pending.len() < LEFT_MAX {
            ids.pending.insert(id);
        }
        self.changed.notify_one();
    }

    fn contains(&self, id: TaskId) -> bool {
        let ids = self.lock();
        ids.pending.contains(&id) || ids.recording.contains(&id)
    }

    fn begin_recording(&self) -> Vec<TaskId> {
        let mut ids = self.lock();
        ids.recording = mem::take(&mut ids.pending);
        ids.recording.iter().copied().collect()
    }

    fn recorded(&self) {
        self.lock().recording.clear();
    }

    fn record_again(&self) {
        let mut ids = self.lock();
        let recording = mem::take(&mut ids.recording);
        ids.pending.extend(recording);
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LeftIds> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits until the task has ended, at most for `within`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids;

    #[tokio::test]
    async fn callers_dismissed_at_a_shutdown_count_as_gone() {
        let waiters = Waiters::default();
        let id = ids::row_id();
        let waiting = waiters.subscribe(id);
        assert!(!waiters.has_left(id));
        waiters.dismiss();
        assert!(waiters.has_left(id));
        let waited = waiting.ended(Duration::from_mins(1)).await;
        assert!(matches!(waited, Waited::Dismissed), "{waited:?}");
    }
}
