//! Looking up tasks that clients poll for: polls that come while a query is under way share the next.

use std::{collections::HashMap, sync::Arc};

use sqlx::PgPool;

use super::{Summary, store};
use crate::{batch::Batcher, ids::TaskId};

const BATCH_MAX: usize = 256;

/// Looks tasks up, in batches. `None`: there is no such task.
pub type Poller = Batcher<TaskId, Result<Option<Arc<Summary>>, Arc<sqlx::Error>>>;

pub fn start(pool: PgPool) -> Poller {
    Batcher::start(BATCH_MAX, move |ids| {
        let pool = pool.clone();
        async move {
            match look_up(&pool, &ids).await {
                Ok(tasks) => ids.iter().map(|id| Ok(tasks.get(id).cloned())).collect(),
                Err(error) => {
                    let error = Arc::new(error);
                    ids.iter().map(|_| Err(Arc::clone(&error))).collect()
                }
            }
        }
    })
}

async fn look_up(pool: &PgPool, ids: &[TaskId]) -> sqlx::Result<HashMap<TaskId, Arc<Summary>>> {
    let tasks = store::summaries(&mut *pool.acquire().await?, ids).await?;
    Ok(tasks
        .into_iter()
        .map(|task| (task.id, Arc::new(task)))
        .collect())
}
