//! Finds ended tasks whose attempts may have left unreferenced images in storage.

use std::time::Duration;

use sqlx::{PgConnection, query};

use super::row::{Parsed, readable};
use crate::{db::interval, ids::TaskId, tasks::Image};

/// An ended task and the images to keep.
#[derive(Debug)]
pub struct Unswept {
    /// Identifies it.
    pub id: TaskId,
    /// Those that were delivered; none if it failed.
    pub images: Vec<Image>,
}

/// Returns ended tasks that were begun more than once or failed because of us, and whose deadline
/// passed at least `grace` ago, so that no worker works on them any more.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn unswept(
    conn: &mut PgConnection,
    grace: Duration,
    limit: i64,
) -> sqlx::Result<Vec<Unswept>> {
    let rows = query!(
        r#"SELECT id, images AS "images: Parsed<Vec<Image>>" FROM task_history
           WHERE id = ANY(ARRAY(SELECT task_id FROM unswept_tasks WHERE sweep_at < now() - $1::interval
                                ORDER BY sweep_at LIMIT $2))"#,
        interval(grace),
        limit,
    )
    .fetch_all(conn)
    .await?;
    let unswept = readable(rows, |row| {
        let images = row.images.map(|images| images.of(row.id.into(), "images"));
        Ok(Unswept {
            id: row.id.into(),
            // A failed task has none.
            images: images.transpose()?.unwrap_or_default(),
        })
    });
    Ok(unswept.collect())
}

/// Records that these tasks have no images left to delete.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn mark_swept(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<u64> {
    let done = query!(
        "DELETE FROM unswept_tasks WHERE task_id = ANY($1)",
        ids as _
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
