//! Ends tasks: one transaction writes the outcome, captures the price of what was delivered and
//! releases the rest. Tasks that end at the same time share it.

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
/// How many accounts with a line of their own are settled at a time: each takes a connection.
const ALONE_MAX: usize = 4;
/// Between two attempts to reach an unresponsive database. A settlement is retried until it
/// succeeds: only an expired lease passes the task on.
const RETRY: Duration = Duration::from_millis(500);
/// A batch that has timed out this often is taken apart.
const TRIES_TOGETHER: u32 = 3;

/// A claimed task and how it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    pub task: Arc<Task>,
    pub ending: Arc<Ending>,
}

/// Ends tasks, in batches. `None`: the task had been claimed anew or ended, and nothing was changed.
pub type Settler = Batcher<Finished, Option<Arc<Summary>>>;

/// What the settler works with.
pub struct SettleBatch {
    pub pool: db::Pool,
    pub waiters: Waiters,
    /// Reports whether the settler makes progress.
    pub progress: Progress,
    /// Determines when a month begins, for quotas.
    pub time_zone: String,
}

/// Starts the loop that ends tasks and wakes their waiters.
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

/// How much of an ending is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Full,
    /// Only the outcome, without the upstream's usage and attempt details.
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
        // Rows are locked in id order, whichever worker ends them. If one task is in the batch
        // twice, only the ending of its latest claim can apply, and only once.
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

    /// Ends tasks, retrying while the database is away. `None`: the batch must be taken apart,
    /// because one task is refused, an account is locked, or it is too large to end in time.
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

    /// Ends tasks of one account. If the database refuses the batch, each task is ended alone, so
    /// that none blocks the others; a task refused alone is left to the end of its lease.
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
        // Waiters in this process are woken directly.
        let elsewhere: Vec<TaskId> = ended
            .iter()
            .map(|ended| ended.id)
            .filter(|id| !self.waiters.has(*id))
            .collect();
        store::notify_ended(&mut tx, &elsewhere).await?;
        // Includes tasks that an earlier try ended, if its commit succeeded although it seemed to fail.
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
    /// The task as the database now has it, without a query.
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
