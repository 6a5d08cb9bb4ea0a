//! Deletes expired uploads and images left by lost attempts, and adds the partitions of coming months. Deletes the bytes first and records
//! that afterwards, so that a crash in between only repeats the deletion. Several replicas may
//! sweep at once.

use std::{collections::HashSet, error::Error};

use crate::{
    app::App,
    clock::jittered,
    ids::UploadId,
    storage::{Key, StorageError},
    tasks::{self, store::Unswept},
    uploads::store,
};

const BATCH: i64 = 500;
/// Partitions exist this far ahead, in case none can be added for a while.
const MONTHS_AHEAD: i32 = 2;

/// Why a sweep stopped early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The bytes may be deleted already; the next sweep deletes them again.
    #[error("the list of objects to delete could not be read or updated")]
    Database(#[from] sqlx::Error),
    /// The rows stay, so that the next sweep tries again.
    #[error("unused objects could not be deleted from storage")]
    Storage(#[from] StorageError),
}

/// Sweeps at the configured interval. Never returns.
pub async fn keep_sweeping(app: App) {
    loop {
        match sweep(&app).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted expired uploads"),
            Err(error) => tracing::warn!(
                error = &error as &dyn Error,
                "expired uploads could not be swept"
            ),
        }
        match sweep_images(&app).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted images of lost attempts"),
            Err(error) => tracing::warn!(
                error = &error as &dyn Error,
                "images of lost attempts could not be swept"
            ),
        }
        let months =
            async { tasks::store::add_months(&mut *app.pool.acquire().await?, MONTHS_AHEAD).await };
        if let Err(error) = app.pool.in_time(months).await {
            tracing::warn!(
                error = &error as &dyn Error,
                "the partitions of coming months could not be added"
            );
        }
        let interval = app.config.uploads.sweep_interval();
        tokio::time::sleep(jittered(interval, 1.0..=1.1)).await;
    }
}

/// Deletes uploads that expired so long ago that no task uses them. Returns their number.
pub async fn sweep(app: &App) -> Result<u64, SweepError> {
    // A task may have begun with an upload just before it expired.
    let before = app.clock.now() - app.config.tasks.deadline();
    let mut deleted = 0;
    loop {
        let expired = async {
            let mut conn = app.pool.acquire().await?;
            store::expired(&mut conn, before, BATCH).await
        };
        let expired = app.pool.in_time(expired).await?;
        if expired.is_empty() {
            return Ok(deleted);
        }
        let (ids, keys): (Vec<UploadId>, Vec<Key>) = expired.into_iter().unzip();
        app.storage.delete(&keys).await?;
        let marked = async { store::mark_deleted(&mut *app.pool.acquire().await?, &ids).await };
        deleted += app.pool.in_time(marked).await?;
    }
}

/// Deletes images of ended tasks that no task refers to: those of attempts whose worker was lost,
/// or whose task had failed by the time they were stored. Returns their number.
pub async fn sweep_images(app: &App) -> Result<u64, SweepError> {
    // By then a paused worker has noticed that it lost the task.
    let grace = app.config.tasks.lease();
    let mut deleted = 0;
    loop {
        let unswept = async {
            let mut conn = app.pool.acquire().await?;
            tasks::store::unswept(&mut conn, grace, BATCH).await
        };
        let unswept = app.pool.in_time(unswept).await?;
        if unswept.is_empty() {
            return Ok(deleted);
        }
        for task in &unswept {
            deleted += delete_orphans(app, task).await?;
        }
        let ids: Vec<_> = unswept.iter().map(|task| task.id).collect();
        let marked =
            async { tasks::store::mark_swept(&mut *app.pool.acquire().await?, &ids).await };
        app.pool.in_time(marked).await?;
    }
}

async fn delete_orphans(app: &App, task: &Unswept) -> Result<u64, StorageError> {
    let delivered: HashSet<&Key> = task.images.iter().map(|image| &image.object).collect();
    let mut orphans = app.storage.images_of(task.id).await?;
    orphans.retain(|key| !delivered.contains(key));
    app.storage.delete(&orphans).await?;
    Ok(orphans.len() as u64)
}
