//! Finds tasks that no worker will end.

use std::time::Duration;

use sqlx::{PgConnection, query_as};

use crate::{
    db::interval,
    ids::{AccountId, TaskId},
};

/// Which open tasks to end outside their worker, without reading their requests.
#[derive(Clone, Copy, Debug)]
pub enum Overdue {
    /// Past their deadline. A worker has `grace` to end its own task first.
    Expired {
        /// From the deadline on.
        grace: Duration,
    },
    /// Lost by their workers, with no attempt left.
    Exhausted {
        /// How often a task may be begun.
        attempts_max: i16,
    },
}

/// An open task that is overdue.
#[derive(Clone, Copy, Debug)]
pub struct OverdueTask {
    /// Identifies it.
    pub id: TaskId,
    /// The fence of its latest claim, under which it is ended.
    pub fence: i64,
    /// The account that pays it.
    pub account_id: AccountId,
}

/// Locks up to `limit` overdue tasks that no other transaction has locked, except those of some accounts.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn overdue(
    conn: &mut PgConnection,
    which: Overdue,
    except: &[AccountId],
    limit: i64,
) -> sqlx::Result<Vec<OverdueTask>> {
    match which {
        Overdue::Expired { grace } => {
            query_as!(
                OverdueTask,
                "SELECT id, fence, account_id FROM open_tasks
                 WHERE deadline_at <= now()
                     AND (status = 'queued' OR lease_until < now() OR deadline_at <= now() - $3::interval)
                     AND account_id <> ALL($1)
                 ORDER BY deadline_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except as _,
                limit,
                interval(grace),
            )
            .fetch_all(conn)
            .await
        }
        Overdue::Exhausted { attempts_max } => {
            query_as!(
                OverdueTask,
                "SELECT id, fence, account_id FROM open_tasks
                 WHERE status = 'running' AND lease_until < now() AND attempts >= $3
                     AND account_id <> ALL($1)
                 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
                except as _,
                limit,
                attempts_max,
            )
            .fetch_all(conn)
            .await
        }
    }
}
