//! What a request has stored before it is accepted. Unless it is kept, it is deleted when this is
//! dropped, whether the request was refused or its client disconnected.

use std::{error::Error, fmt, mem};

use tokio::runtime::Handle;

use crate::{
    app::App,
    db,
    ids::UploadId,
    storage::{Key, StorageError},
    uploads::store,
};

/// Stored objects that are deleted on drop unless kept.
#[derive(Default)]
pub struct StoredInputs {
    /// `None`: nothing was stored.
    app: Option<App>,
    stored: Vec<(UploadId, Key)>,
}

#[derive(Debug, thiserror::Error)]
enum DiscardError {
    #[error("the bytes could not be deleted from storage")]
    Storage(#[from] StorageError),
    #[error("the rows could not be deleted from the database")]
    Database(#[from] sqlx::Error),
}

impl StoredInputs {
    /// Registers an object that is about to be written.
    pub(super) fn add(&mut self, app: &App, id: UploadId, key: Key) {
        self.app.get_or_insert_with(|| app.clone());
        self.stored.push((id, key));
    }

    /// Keeps the objects: from now on they belong to a task or a client.
    pub fn keep(mut self) {
        self.stored.clear();
    }
}

impl Drop for StoredInputs {
    fn drop(&mut self) {
        // After a panic it is unknown whether the request was accepted: the sweep deletes what it stored.
        if self.stored.is_empty() || std::thread::panicking() {
            return;
        }
        let (Some(app), Ok(runtime)) = (self.app.take(), Handle::try_current()) else {
            return;
        };
        let stored = mem::take(&mut self.stored);
        let tracker = app.shutdown.tracker.clone();
        let discarding = async move {
            if let Err(error) = discard(&app, &stored).await {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "the inputs of a refused request could not be deleted; the sweep will delete them"
                );
            }
        };
        tracker.spawn_on(discarding, &runtime);
    }
}

/// Deletes the bytes first: the sweep finds a row without bytes, but not bytes without a row.
async fn discard(app: &App, stored: &[(UploadId, Key)]) -> Result<(), DiscardError> {
    let (ids, keys): (Vec<UploadId>, Vec<Key>) = stored.iter().cloned().unzip();
    app.storage.delete(&keys).await?;
    let deleted = async { store::delete(&mut *db::acquire(&app.pool).await?, &ids).await };
    app.pool.in_time(deleted).await?;
    Ok(())
}

impl fmt::Debug for StoredInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredInputs")
            .field("stored", &self.stored)
            .finish_non_exhaustive()
    }
}
