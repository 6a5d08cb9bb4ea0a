//! Deleting uploads whose time is over: first the bytes, then the note that they are gone, so that a
//! crash between the two only repeats the first. Several replicas may sweep at once.

use std::error::Error;

use crate::{
    app::App,
    storage::{Key, StorageError},
    uploads::store,
};

const BATCH: i64 = 500;

#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("expired uploads could not be read from the database")]
    Database(#[from] sqlx::Error),
    #[error("expired uploads could not be deleted from storage")]
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
        let expired = {
            let mut conn = app.pool.acquire().await?;
            store::expired(&mut conn, before, BATCH).await?
        };
        if expired.is_empty() {
            return Ok(deleted);
        }
        let keys: Vec<Key> = expired
            .iter()
            .filter_map(|u| u.object.parse().ok())
            .collect();
        app.storage.delete(&keys).await?;
        let ids: Vec<_> = expired.iter().map(|upload| upload.id).collect();
        let mut conn = app.pool.acquire().await?;
        deleted += store::mark_deleted(&mut conn, &ids).await?;
    }
}
