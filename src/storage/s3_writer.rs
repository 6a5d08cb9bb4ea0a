//! Writes one object to an S3 store: a small one with a single PUT, a larger one in parts.

use std::{mem, sync::Arc};

use object_store::{
    Attributes, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, WriteMultipart,
    path::Path,
};
use tokio::runtime::Handle;

use super::{
    StorageError,
    key::Key,
    s3::{S3, attributes},
};

/// An object that is being written. Nothing is visible until it is finished.
pub(super) struct S3Writer {
    s3: Arc<S3>,
    path: Path,
    attributes: Attributes,
    /// The body of a single PUT. Empty once there are parts.
    gathered: Vec<u8>,
    parts: Option<WriteMultipart>,
}

/// The smallest part that S3 accepts. A writer holds at most two parts being sent and one filling.
const PART_BYTES: usize = 5 * 1024 * 1024;
const PARTS_SENT_AT_ONCE_MAX: usize = 2;

impl S3Writer {
    /// Begins the object. Sends nothing until a part is full.
    pub(super) fn new(s3: &Arc<S3>, key: &Key) -> Self {
        Self {
            s3: Arc::clone(s3),
            path: s3.path(key),
            attributes: attributes(key),
            gathered: Vec::new(),
            parts: None,
        }
    }

    /// Adds bytes. An error may belong to an earlier part.
    pub(super) async fn write(&mut self, piece: &[u8]) -> Result<(), StorageError> {
        // A piece can have any length. Each chunk starts at most one part.
        for piece in piece.chunks(PART_BYTES) {
            if self.parts.is_none() && self.gathered.len() + piece.len() > PART_BYTES {
                self.begin_parts().await?;
            }
            match &mut self.parts {
                Some(parts) => {
                    parts
                        .wait_for_capacity(PARTS_SENT_AT_ONCE_MAX)
                        .await
                        .map_err(StorageError::s3("write a part of an object"))?;
                    parts.write(piece);
                }
                None => self.gathered.extend_from_slice(piece),
            }
        }
        Ok(())
    }

    /// Returns once the store has confirmed the object.
    pub(super) async fn finish(mut self: Box<Self>) -> Result<(), StorageError> {
        let put = if let Some(parts) = self.parts.take() {
            parts.finish().await
        } else {
            let payload = PutPayload::from(mem::take(&mut self.gathered));
            let options = PutOptions::from(self.attributes.clone());
            let store = &self.s3.store;
            store.put_opts(&self.path, payload, options).await
        };
        put.map(|_| ())
            .map_err(StorageError::s3("finish an object"))
    }

    async fn begin_parts(&mut self) -> Result<(), StorageError> {
        let options = PutMultipartOptions::from(self.attributes.clone());
        let upload = self
            .s3
            .store
            .put_multipart_opts(&self.path, options)
            .await
            .map_err(StorageError::s3("start an object"))?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        parts.put(mem::take(&mut self.gathered).into());
        self.parts = Some(parts);
        Ok(())
    }
}

impl Drop for S3Writer {
    fn drop(&mut self) {
        let (Some(parts), Ok(runtime)) = (self.parts.take(), Handle::try_current()) else {
            return;
        };
        // A shutdown need not wait for this: leftover parts are not an object, they only use space.
        runtime.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::warn!(%error, "could not remove the parts of an unfinished object from the store");
            }
        });
    }
}
