//! Deleting what is of no more use: uploads whose time is over, and images that lost attempts have left. First
//! the bytes go, then that is noted, so that a crash between the two only repeats the first. Several replicas
//! may sweep at once.

use std::{collections::HashSet, error::Error};

use crate::{
    app::App,
    storage::{Key, StorageError},
    tasks::{self, store::Unswept},
    uploads::store,
};

const BATCH: i64 = 500;

#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("what is to be deleted could not be read from the database")]
    Database(#[from] sqlx::Error),
    #[error("what is of no more use could not be deleted from storage")]
    Storage(#[from] StorageError),
}

/// Sweeps at the configured interval, for ever.
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
            Ok(deleted) => tracing::info!(deleted, "deleted images that lost attempts had left"),
            Err(error) => tracing::warn!(
                error = &error as &dyn Error,
                "images of lost attempts could not be swept"
            ),
        }
        let interval = app.config.uploads.sweep_interval();
        let jitter = interval.mul_f64(rand::random_range(0.0..0.1));
        tokio::time::sleep(interval + jitter).await;
    }
}

/// Deletes what expired long enough ago that no task works from it any more. The number of uploads.
pub async fn sweep(app: &App) -> Result<u64, SweepError> {
    // A task may have begun with an upload just before that expired.
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
        let keys: Vec<Key> = expired
            .iter()
            .filter_map(|u| u.object.parse().ok())
            .collect();
        app.storage.delete(&keys).await?;
        let ids: Vec<_> = expired.iter().map(|upload| upload.id).collect();
        let marked = async { store::mark_deleted(&mut *app.pool.acquire().await?, &ids).await };
        deleted += app.pool.in_time(marked).await?;
    }
}

/// Deletes the images of ended tasks that no task refers to: those of attempts whose worker was lost, or whose
/// task had failed by the time they were stored. The number of images.
pub async fn sweep_images(app: &App) -> Result<u64, SweepError> {
    // By then a worker that was paused has seen that it has lost the task.
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
    let delivered: HashSet<&str> = task
        .images
        .iter()
        .map(|image| image.object.as_str())
        .collect();
    let mut orphans = app.storage.images_of(task.id).await?;
    orphans.retain(|key| !delivered.contains(key.as_str()));
    app.storage.delete(&orphans).await?;
    Ok(orphans.len() as u64)
}
