//! Ending tasks: one transaction writes the outcome, captures what was delivered and releases the
//! rest. Tasks that end at the same time share it.

use std::{cmp::Reverse, collections::HashMap, error::Error, slice, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::sync::Semaphore;

use super::run::Ending;
use crate::{
    batch::{Batcher, Line, Worked},
    billing::ledger::{self, Settlement},
    db::{self, Trouble, trouble},
    ids::TaskId,
    progress::{Loop, Progress},
    tasks::{
        End, Outcome, Status, Summary, Task,
        store::{self, Ended},
        wait::Waiters,
    },
};

const BATCH_MAX: usize = 256;
/// How many accounts that kept others waiting are worked on at a time: each takes a connection.
const ALONE_MAX: usize = 4;
/// Between two tries to reach a database that does not answer. A settlement is not given up for that:
/// only the lease's end passes the task on.
const RETRY: Duration = Duration::from_millis(500);
/// What cannot be done in time so often is done in smaller parts.
const TRIES_TOGETHER: u32 = 3;

/// A claimed task and what came of it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub task: Arc<Task>,
    pub ending: Arc<Ending>,
}

/// Ends tasks, in batches. `None`: the task was no longer this worker's, and nothing was changed.
pub type Settler = Batcher<Finished, Option<Arc<Summary>>>;

/// What tasks are ended with.
pub struct SettleBatch {
    pub pool: db::Pool,
    pub waiters: Waiters,
    pub progress: Progress,
    pub time_zone: String,
}

/// Starts ending tasks, and waking those who wait for them.
pub fn start(settle: SettleBatch) -> Settler {
    let settle = Arc::new(settle);
    let alone = Arc::new(Semaphore::new(ALONE_MAX));
    let account_of = |finished: &Finished| finished.task.account_id;
    Batcher::start_with_lines(BATCH_MAX, account_of, move |batch, line| {
        let (settle, alone) = (Arc::clone(&settle), Arc::clone(&alone));
        async move { settle.settle(batch, line, &alone).await }
    })
}

type EndedTasks = HashMap<TaskId, Arc<Summary>>;

/// What of an ending is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Full,
    /// The outcome alone, without what the upstream said beside it.
    Outcome,
}

impl SettleBatch {
    async fn settle(
        &self,
        mut batch: Vec<Finished>,
        line: Line,
        alone: &Semaphore,
    ) -> Worked<Finished, Option<Arc<Summary>>> {
        let all = batch.clone();
        // Rows are locked in the order of their ids, whatever worker ends them. Of two endings of one
        // task only that of the latest claim can come true, and only once.
        batch.sort_by_key(|finished| (finished.task.id, Reverse(finished.task.fence)));
        batch.dedup_by_key(|finished| finished.task.id);
        let ended = match line {
            Line::Shared => self.end_together(&batch).await,
            Line::Own => Some(self.end_alone(&batch, alone).await),
        };
        let Some(ended) = ended else {
            return Err(all);
        };
        for task in ended.values() {
            self.waiters.ended(Arc::clone(task));
        }
        let order = all.iter().map(|finished| finished.task.id);
        Ok(order.map(|id| ended.get(&id).cloned()).collect())
    }

    /// Ends tasks, however long the database is away. `None`: they have to be taken apart, because of one that
    /// is refused or whose account others hold, or because they are too many to be ended in time.
    async fn end_together(&self, batch: &[Finished]) -> Option<EndedTasks> {
        let mut tries = 1;
        loop {
            let attempt = self.progress.begin(Loop::Settle);
            let error = match self.try_to_end(batch, Line::Shared, Detail::Full).await {
                Ok(ended) => {
                    attempt.succeeded();
                    return Some(ended);
                }
                Err(error) => error,
            };
            if trouble(&error) != Trouble::Unreachable {
                attempt.succeeded();
                return None;
            }
            if db::is_timeout(&error) && tries >= TRIES_TOGETHER {
                return None;
            }
            tries += 1;
            drop(attempt);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends tasks of one account. What the database refuses together is tried one by one, so that none keeps the
    /// others open; one that it refuses alone is left to the end of its lease.
    async fn end_alone(&self, batch: &[Finished], alone: &Semaphore) -> EndedTasks {
        let mut detail = Detail::Full;
        loop {
            let tried = async {
                let _turn = alone.acquire().await;
                self.try_to_end(batch, Line::Own, detail).await
            };
            let error = match tried.await {
                Ok(ended) => return ended,
                Err(error) => error,
            };
            let is_of_one = match trouble(&error) {
                Trouble::Contended => false,
                Trouble::Unreachable => db::is_timeout(&error),
                Trouble::Refused | Trouble::Other => true,
            };
            if is_of_one && batch.len() > 1 {
                let mut ended = HashMap::new();
                for finished in batch {
                    let alone = self.end_alone(slice::from_ref(finished), alone);
                    ended.extend(Box::pin(alone).await);
                }
                return ended;
            }
            match (trouble(&error), detail) {
                (Trouble::Refused, Detail::Full) => detail = Detail::Outcome,
                (Trouble::Refused, Detail::Outcome) => return HashMap::new(),
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn try_to_end(
        &self,
        batch: &[Finished],
        line: Line,
        detail: Detail,
    ) -> sqlx::Result<EndedTasks> {
        let ended = self.transact(batch, line, detail);
        let ended = self.pool.in_time(ended).await;
        if let Err(error) = &ended {
            tracing::warn!(
                error = error as &dyn Error,
                tasks = batch.len(),
                "tasks could not be settled yet"
            );
        }
        ended
    }

    async fn transact(
        &self,
        batch: &[Finished],
        line: Line,
        detail: Detail,
    ) -> sqlx::Result<EndedTasks> {
        let endings: Vec<store::Ending<'_>> = batch
            .iter()
            .map(|finished| store::Ending {
                id: finished.task.id,
                fence: finished.task.fence,
                outcome: &finished.ending.outcome,
                attempt: (finished.ending.attempt.as_ref()).filter(|_| detail == Detail::Full),
                usage: match detail {
                    Detail::Full => &finished.ending.usage,
                    Detail::Outcome => &[],
                },
            })
            .collect();
        let mut tx = db::begin(&self.pool, line.into()).await?;
        let ended = store::end(&mut tx, &endings).await?;
        let settlements: Vec<Settlement> = ended.iter().map(Settlement::from).collect();
        ledger::settle(&mut tx, &settlements, &self.time_zone).await?;
        // Who waits in this process is told directly.
        let elsewhere: Vec<TaskId> = ended
            .iter()
            .map(|ended| ended.id)
            .filter(|id| !self.waiters.has(*id))
            .collect();
        store::notify_ended(&mut tx, &elsewhere).await?;
        // What an earlier try ended, if its commit went through though it seemed to fail.
        let mut tasks = ended_before(&mut tx, batch, &ended).await?;
        tx.commit().await?;

        let ended: HashMap<TaskId, Ended> = ended.into_iter().map(|e| (e.id, e)).collect();
        for finished in batch {
            if let Some(ended) = ended.get(&finished.task.id) {
                tasks.insert(ended.id, Arc::new(finished.ended(ended)));
            }
        }
        Ok(tasks)
    }
}

async fn ended_before(
    conn: &mut PgConnection,
    batch: &[Finished],
    ended: &[Ended],
) -> sqlx::Result<EndedTasks> {
    if ended.len() == batch.len() {
        return Ok(HashMap::new());
    }
    let fences: HashMap<TaskId, i64> = batch
        .iter()
        .map(|finished| (finished.task.id, finished.task.fence))
        .collect();
    let ids: Vec<TaskId> = fences.keys().copied().collect();
    let found = store::ended_among(conn, &ids).await?;
    let mine = found
        .into_iter()
        .filter(|task| fences.get(&task.id) == Some(&task.fence));
    Ok(mine.map(|task| (task.id, Arc::new(task))).collect())
}

impl From<&Ended> for Settlement {
    fn from(ended: &Ended) -> Self {
        Self {
            task_id: ended.id,
            account_id: ended.account_id,
            held: ended.held,
            captured: ended.cost,
        }
    }
}

impl Finished {
    /// The task as it now is in the database, without asking for it.
    fn ended(&self, ended: &Ended) -> Summary {
        let outcome = self.ending.outcome.clone();
        let status = match outcome {
            Outcome::Completed(_) => Status::Completed,
            Outcome::Failed(_) => Status::Failed,
        };
        let end = End {
            at: ended.at,
            cost: ended.cost,
            outcome,
        };
        self.task.ended(status, end)
    }
}
