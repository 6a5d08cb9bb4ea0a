//! Ending tasks: one transaction writes the outcome, captures what was delivered and releases the
//! rest. Tasks that end at the same time share it.

use std::{cmp::Reverse, collections::HashMap, error::Error, slice, sync::Arc, time::Duration};

use sqlx::{PgPool, error::DatabaseError};

use super::run::Ending;
use crate::{
    batch::Batcher,
    billing::ledger::{self, Settlement},
    ids::TaskId,
    tasks::{
        End, Outcome, Status, Summary, Task,
        store::{self, Ended},
        wait::Waiters,
    },
};

const BATCH_MAX: usize = 256;
/// Between two tries to reach a database that does not answer. A settlement is not given up for that:
/// only the lease's end passes the task on.
const RETRY: Duration = Duration::from_millis(500);

/// A claimed task and what came of it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub task: Arc<Task>,
    pub ending: Arc<Ending>,
}

/// Ends tasks, in batches. `None`: the task was no longer this worker's, and nothing was changed.
pub type Settler = Batcher<Finished, Option<Arc<Summary>>>;

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
    async fn settle(&self, mut batch: Vec<Finished>) -> Vec<Option<Arc<Summary>>> {
        let order: Vec<TaskId> = batch.iter().map(|finished| finished.task.id).collect();
        // Rows are locked in the order of their ids, whatever worker ends them. Of two endings of one
        // task only that of the latest claim can come true, and only once.
        batch.sort_by_key(|finished| (finished.task.id, Reverse(finished.task.fence)));
        batch.dedup_by_key(|finished| finished.task.id);
        let ended = self.end(&batch).await;
        for task in ended.values() {
            self.waiters.ended(Arc::clone(task));
        }
        order.iter().map(|id| ended.get(id).cloned()).collect()
    }

    /// Ends tasks, however long the database is away. What it refuses together is tried one by one, so
    /// that none keeps the others open; one that it refuses alone is left to the end of its lease.
    async fn end(&self, batch: &[Finished]) -> HashMap<TaskId, Arc<Summary>> {
        loop {
            let error = match self.transact(batch).await {
                Ok(ended) => return ended,
                Err(error) => error,
            };
            tracing::error!(
                error = &error as &dyn Error,
                tasks = batch.len(),
                "tasks could not be settled"
            );
            if is_refusal(&error) {
                let mut ended = HashMap::new();
                for finished in batch.iter().filter(|_| batch.len() > 1) {
                    ended.extend(Box::pin(self.end(slice::from_ref(finished))).await);
                }
                return ended;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn transact(&self, batch: &[Finished]) -> sqlx::Result<HashMap<TaskId, Arc<Summary>>> {
        let endings: Vec<store::Ending<'_>> = batch
            .iter()
            .map(|finished| store::Ending {
                id: finished.task.id,
                fence: finished.task.fence,
                outcome: &finished.ending.outcome,
                attempt: finished.ending.attempt.as_ref(),
                usage: &finished.ending.usage,
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
    ) -> sqlx::Result<HashMap<TaskId, Arc<Summary>>> {
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

/// Whether it would be refused again: a value that cannot be stored, or a broken constraint.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
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
