//! Where a backend's pictures go: each through the filter that checks it and takes its metadata away,
//! piece by piece into storage.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    backend::{ImageSink, SinkError},
    image::{Filter, InvalidImage, Limits, Metadata},
    storage::{Key, ObjectWriter, Storage},
    tasks::{Image, Task},
};

/// Of one picture, as an upstream sends it.
const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Keeps the pictures of one attempt of a task. Those of an attempt that lost its lease stay under
/// keys of their own, which nothing refers to.
pub(super) struct StorageSink<'a> {
    storage: &'a Storage,
    task: &'a Task,
    limits: Limits,
    current: Option<Current>,
    kept: Vec<Image>,
}

struct Current {
    filter: Filter,
    received: usize,
    /// Ready to be stored; waits here only until the format, and so the key, is known.
    ready: Vec<Bytes>,
    object: Option<(Key, ObjectWriter)>,
}

impl Current {
    /// Stores what the filter let through.
    async fn store(&mut self) -> Result<(), SinkError> {
        if let Some((_, writer)) = &mut self.object {
            for piece in self.ready.drain(..) {
                writer.write(piece).await.map_err(not_stored)?;
            }
        }
        Ok(())
    }
}

impl<'a> StorageSink<'a> {
    pub(super) fn new(storage: &'a Storage, task: &'a Task, limits: Limits) -> Self {
        Self {
            storage,
            task,
            limits,
            current: None,
            kept: Vec::new(),
        }
    }

    /// The pictures that are whole and stored, in the order they came.
    pub(super) fn into_images(self) -> Vec<Image> {
        self.kept
    }

    /// Opens the object once its format, and so its key, is known.
    fn open(&self, current: &mut Current) {
        if current.object.is_none()
            && let Some(format) = current.filter.format()
        {
            let seq = u8::try_from(self.kept.len() + 1).unwrap_or(u8::MAX);
            let key = Key::image(self.task.id, self.task.fence, seq, format);
            let writer = self.storage.writer(&key);
            current.object = Some((key, writer));
        }
    }
}

#[async_trait]
impl ImageSink for StorageSink<'_> {
    async fn accepted(&mut self, _job: &str) -> Result<(), SinkError> {
        Ok(())
    }

    fn usage(&mut self, _usage: serde_json::Value) {}

    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError> {
        let mut current = self.current.take().unwrap_or_else(|| Current {
            filter: Filter::new(Metadata::Strip, self.limits),
            received: 0,
            ready: Vec::new(),
            object: None,
        });
        current.received += piece.len();
        if current.received > IMAGE_BYTES_MAX {
            return Err(SinkError::NotAnImage(InvalidImage::Damaged));
        }
        current
            .filter
            .push(piece, &mut current.ready)
            .map_err(SinkError::NotAnImage)?;
        self.open(&mut current);
        current.store().await?;
        self.current = Some(current);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), SinkError> {
        let damaged = || SinkError::NotAnImage(InvalidImage::Damaged);
        let current = self.current.take().ok_or_else(damaged)?;
        let info = current.filter.finish().map_err(SinkError::NotAnImage)?;
        let (key, writer) = current.object.ok_or_else(damaged)?;
        let bytes = writer.finish().await.map_err(not_stored)?;
        self.kept.push(Image {
            object: key.to_string(),
            format: info.format,
            bytes,
            width: info.width,
            height: info.height,
        });
        Ok(())
    }
}

fn not_stored(error: crate::storage::StorageError) -> SinkError {
    SinkError::Storage(Box::new(error))
}
