//! Ends tasks: one statement writes the outcome, captures the price of what was delivered and
//! releases the rest. Tasks that end at the same time share it.

use std::{cmp::Reverse, collections::HashMap, error::Error, slice, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::sync::Semaphore;

use crate::{
    batch::{Batcher, Lane, Worked},
    billing::ledger::{self, Settlement, Settling},
    db::{self, Keeper, Trouble, trouble},
    ids::TaskId,
    progress::{Loop, Progress},
    tasks::{End, Ending, Summary, Task, store, wait::Waiters},
};

const BATCH_MAX: usize = 256;
/// How many accounts with a lane of their own are settled at a time: each takes a connection.
const ALONE_MAX: usize = 4;
/// Between two attempts to reach an unresponsive database. A settlement is retried until it
/// succeeds: only an expired lease passes the task on.
const RETRY: Duration = Duration::from_millis(500);
/// A batch that has timed out this often is taken apart.
const TRIES_TOGETHER: u32 = 3;

/// A claimed task and how it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The task, as claimed.
    pub task: Arc<Task>,
    /// What it ended with.
    pub ending: Arc<Ending>,
}

/// Ends tasks, in batches. `None`: the task had been claimed anew or ended, and nothing was changed.
pub type Settler = Batcher<Finished, Option<Arc<Summary>>>;

/// What the settler works with.
pub struct SettleBatch {
    /// The database.
    pub pool: db::Pool,
    /// Woken when their task has ended.
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
    Batcher::start_with_lanes(BATCH_MAX, account_of, move |batch, lane| {
        let (settle, alone) = (Arc::clone(&settle), Arc::clone(&alone));
        async move { settle.settle(batch, lane, &alone).await }
    })
}

type EndedTasks = HashMap<TaskId, Arc<Summary>>;

impl SettleBatch {
    async fn settle(
        &self,
        mut batch: Vec<Finished>,
        lane: Lane,
        alone: &Semaphore,
    ) -> Worked<Finished, Option<Arc<Summary>>> {
        let all = batch.clone();
        // Rows are locked in id order, whichever worker ends them. If one task is in the batch
        // twice, only the ending of its latest claim can apply, and only once.
        batch.sort_by_key(|finished| (finished.task.id, Reverse(finished.task.fence)));
        batch.dedup_by_key(|finished| finished.task.id);
        let ended = match lane {
            Lane::Shared => self.end_together(&batch).await,
            Lane::Own => Some(self.end_alone(&batch, alone).await),
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
            let error = match self.try_to_end(batch, Lane::Shared).await {
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
        loop {
            let tried = async {
                let _turn = alone.acquire().await;
                self.try_to_end(batch, Lane::Own).await
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
            match batch {
                [_, _, ..] if is_of_one => {
                    let mut ended = HashMap::new();
                    for finished in batch {
                        let alone = self.end_alone(slice::from_ref(finished), alone);
                        ended.extend(Box::pin(alone).await);
                    }
                    return ended;
                }
                [finished] if trouble(&error) == Trouble::Refused => {
                    let Some(outcome) = finished.outcome_only() else {
                        return HashMap::new();
                    };
                    return Box::pin(self.end_alone(&[outcome], alone)).await;
                }
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn try_to_end(&self, batch: &[Finished], lane: Lane) -> sqlx::Result<EndedTasks> {
        let ended = self.end(batch, lane);
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

    async fn end(&self, batch: &[Finished], lane: Lane) -> sqlx::Result<EndedTasks> {
        let claim = |finished: &Finished| (finished.task.id, finished.task.fence);
        let endings: Vec<_> = batch
            .iter()
            .map(|finished| (claim(finished), &*finished.ending))
            .collect();
        let settling = Settling {
            time_zone: &self.time_zone,
            process: self.waiters.process(),
            patience: lane.into(),
        };
        let mut conn = self.pool.kept(Keeper::Settle).await?;
        let settlements = ledger::settle(&mut conn, &endings, settling).await?;
        // Includes tasks that an earlier try ended, if it succeeded although it seemed to fail.
        let mut tasks = ended_before(&mut conn, batch, &settlements).await?;
        conn.keep();
        let settlements: HashMap<TaskId, Settlement> =
            settlements.into_iter().map(|s| (s.task_id, s)).collect();
        for finished in batch {
            if let Some(settlement) = settlements.get(&finished.task.id) {
                tasks.insert(finished.task.id, Arc::new(finished.ended(settlement)));
            }
        }
        Ok(tasks)
    }
}

async fn ended_before(
    conn: &mut PgConnection,
    batch: &[Finished],
    settlements: &[Settlement],
) -> sqlx::Result<EndedTasks> {
    if settlements.len() == batch.len() {
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

impl Finished {
    /// The task as the database now has it, without a query.
    fn ended(&self, settlement: &Settlement) -> Summary {
        self.task.ended(End {
            at: settlement.at,
            cost: settlement.captured,
            outcome: self.ending.outcome.clone(),
        })
    }

    /// The same without the upstream's usage and attempt, which the database may refuse. `None`: there are none.
    fn outcome_only(&self) -> Option<Self> {
        let ending = &self.ending;
        let has_details = ending.attempt.is_some() || !ending.usage.is_empty();
        has_details.then(|| Self {
            task: Arc::clone(&self.task),
            ending: Arc::new(Ending::of(ending.outcome.clone())),
        })
    }
}
