//! What a request has brought into storage. It belongs to nobody until the request is accepted: unless it
//! is kept, it is deleted when this is dropped, whether the request was refused or its client has gone.

use std::{error::Error, fmt, mem};

use tokio::runtime::Handle;

use crate::{
    app::App,
    db,
    ids::UploadId,
    storage::{Key, StorageError},
    uploads::store,
};

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
    /// Notes an object that is about to be written.
    pub(super) fn add(&mut self, app: &App, id: UploadId, key: Key) {
        self.app.get_or_insert_with(|| app.clone());
        self.stored.push((id, key));
    }

    /// They belong to a task, or to a client, from now on.
    pub fn keep(mut self) {
        self.stored.clear();
    }
}

impl Drop for StoredInputs {
    fn drop(&mut self) {
        // In a panic nobody knows whether the request was accepted: what it stored is swept.
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
                    "the images of a refused request stay until they are swept"
                );
            }
        };
        tracker.spawn_on(discarding, &runtime);
    }
}

/// The bytes first: a row without bytes is swept later, bytes without a row are not.
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
