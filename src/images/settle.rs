//! Ending tasks: one transaction writes the outcome, captures what was delivered and releases the
//! rest. Tasks that end at the same time share it.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use sqlx::PgPool;

use crate::{
    batch::Batcher,
    billing::ledger::{self, Settlement},
    ids::TaskId,
    tasks::{
        End, Outcome, Status, Task,
        store::{self, Ended, Ending},
        wait::Waiters,
    },
};

const BATCH_MAX: usize = 256;
/// Between two tries to reach a database that does not answer. A settlement is never given up: only
/// the lease's end passes the task on.
const RETRY: Duration = Duration::from_millis(500);

/// A claimed task and what came of it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub task: Arc<Task>,
    pub outcome: Arc<Outcome>,
}

/// Ends tasks, in batches. `None`: the task was no longer this worker's, and nothing was changed.
pub type Settler = Batcher<Finished, Option<Arc<Task>>>;

/// Starts ending tasks, and waking those who wait for them.
pub fn start(pool: PgPool, waiters: Waiters, time_zone: String) -> Settler {
    let desk = Arc::new(Desk {
        pool,
        waiters,
        time_zone,
    });
    Batcher::start(BATCH_MAX, move |batch| {
        let desk = Arc::clone(&desk);
        async move { desk.settle(batch).await }
    })
}

struct Desk {
    pool: PgPool,
    waiters: Waiters,
    time_zone: String,
}

impl Desk {
    async fn settle(&self, mut batch: Vec<Finished>) -> Vec<Option<Arc<Task>>> {
        let order: Vec<TaskId> = batch.iter().map(|finished| finished.task.id).collect();
        // Rows are locked in the order of their ids, whatever worker ends them.
        batch.sort_unstable_by_key(|finished| finished.task.id);
        let ended = loop {
            match self.transact(&batch).await {
                Ok(ended) => break ended,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn Error,
                        tasks = batch.len(),
                        "tasks could not be settled, trying again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        for task in ended.values() {
            self.waiters.ended(Arc::clone(task));
        }
        order.iter().map(|id| ended.get(id).cloned()).collect()
    }

    async fn transact(&self, batch: &[Finished]) -> sqlx::Result<HashMap<TaskId, Arc<Task>>> {
        let endings: Vec<Ending<'_>> = batch
            .iter()
            .map(|finished| Ending {
                id: finished.task.id,
                fence: finished.task.fence,
                outcome: &finished.outcome,
            })
            .collect();
        let mut tx = self.pool.begin().await?;
        let ended = store::end(&mut tx, &endings).await?;
        let settlements: Vec<Settlement> = ended.iter().map(settlement).collect();
        ledger::settle(&mut tx, &settlements, &self.time_zone).await?;
        // Who waits in this process is told directly.
        let elsewhere: Vec<TaskId> = ended
            .iter()
            .map(|ended| ended.id)
            .filter(|id| !self.waiters.has(*id))
            .collect();
        store::notify_ended(&mut tx, &elsewhere).await?;
        tx.commit().await?;

        let mut tasks = self.ended_before(batch, &ended).await?;
        let ended: HashMap<TaskId, Ended> = ended.into_iter().map(|e| (e.id, e)).collect();
        for finished in batch {
            if let Some(ended) = ended.get(&finished.task.id) {
                tasks.insert(ended.id, Arc::new(finished.ended(ended)));
            }
        }
        Ok(tasks)
    }

    /// What an earlier try ended, if its commit went through though it seemed to fail.
    async fn ended_before(
        &self,
        batch: &[Finished],
        ended: &[Ended],
    ) -> sqlx::Result<HashMap<TaskId, Arc<Task>>> {
        if ended.len() == batch.len() {
            return Ok(HashMap::new());
        }
        let fences: HashMap<TaskId, i64> = batch
            .iter()
            .map(|finished| (finished.task.id, finished.task.fence))
            .collect();
        let ids: Vec<TaskId> = fences.keys().copied().collect();
        let found = store::ended_among(&mut *self.pool.acquire().await?, &ids).await?;
        let mine = found
            .into_iter()
            .filter(|task| fences.get(&task.id) == Some(&task.fence));
        Ok(mine.map(|task| (task.id, Arc::new(task))).collect())
    }
}

fn settlement(ended: &Ended) -> Settlement {
    Settlement {
        task_id: ended.id,
        account_id: ended.account_id,
        held: ended.held,
        captured: ended.cost,
    }
}

impl Finished {
    /// The task as it now is in the database, without asking for it.
    fn ended(&self, ended: &Ended) -> Task {
        let outcome = Outcome::clone(&self.outcome);
        let status = match outcome {
            Outcome::Completed(_) => Status::Completed,
            Outcome::Failed(_) => Status::Failed,
        };
        Task {
            status,
            end: Some(End {
                at: ended.at,
                cost: ended.cost,
                outcome,
            }),
            ..Task::clone(&self.task)
        }
    }
}
