//! The process in which the caller of a task waits.

use sqlx::{PgConnection, query};

use crate::ids::TaskId;

/// Records that the callers that waited in this process for some tasks have disconnected.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn remove_waiter(
    conn: &mut PgConnection,
    ids: &[TaskId],
    process: i32,
) -> sqlx::Result<()> {
    query!(
        "UPDATE open_tasks SET waiter = 0 WHERE waiter = $2 AND id = ANY(ARRAY(
             SELECT id FROM open_tasks WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE))",
        ids as _,
        process,
    )
    .execute(&mut *conn)
    .await?;
    // Those that have ended meanwhile.
    query!(
        "UPDATE task_history SET waiter = 0 WHERE waiter = $2 AND id = ANY($1)",
        ids as _,
        process,
    )
    .execute(conn)
    .await
    .map(drop)
}
