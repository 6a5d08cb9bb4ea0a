//! Looks up tasks that clients poll: polls that arrive during a query share the next one.

use std::{collections::HashMap, sync::Arc};

use super::{Summary, store};
use crate::{
    batch::Batcher,
    db::{self, Keeper, Trouble, trouble},
    ids::TaskId,
    progress::{Loop, Progress},
};

const BATCH_MAX: usize = 256;

/// Looks up tasks, in batches. `None`: the task does not exist.
pub type Poller = Batcher<TaskId, Result<Option<Arc<Summary>>, Arc<sqlx::Error>>>;

/// A task, or why its row cannot be read.
type Found = Result<Arc<Summary>, Arc<sqlx::Error>>;

/// Starts the loop that looks up tasks.
pub fn start(pool: db::Pool, progress: Progress) -> Poller {
    Batcher::start(BATCH_MAX, move |ids| {
        let (pool, progress) = (pool.clone(), progress.clone());
        async move {
            let attempt = progress.begin(Loop::Poll);
            match look_up(&pool, &ids).await {
                Ok(tasks) => {
                    attempt.succeeded();
                    let found = |id| tasks.get(id).cloned().transpose();
                    ids.iter().map(found).collect()
                }
                Err(error) => {
                    let error = Arc::new(error);
                    ids.iter().map(|_| Err(Arc::clone(&error))).collect()
                }
            }
        }
    })
}

/// Retries once if the connection turns out to be dead.
async fn look_up(pool: &db::Pool, ids: &[TaskId]) -> sqlx::Result<HashMap<TaskId, Found>> {
    let summaries = || async {
        let mut conn = pool.kept(Keeper::Poll).await?;
        let summaries = store::summaries(&mut conn, ids).await?;
        conn.keep();
        Ok(summaries)
    };
    let tasks = match pool.within(pool.patience() / 2, summaries()).await {
        Err(error) if trouble(&error) == Trouble::Unreachable => {
            pool.within(pool.patience() / 2, summaries()).await?
        }
        first => first?,
    };
    let found = |(id, task): (_, sqlx::Result<_>)| (id, task.map(Arc::new).map_err(Arc::new));
    Ok(tasks.into_iter().map(found).collect())
}
