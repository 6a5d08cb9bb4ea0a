//! Where a backend's pictures go: each through the filter that checks it and takes its metadata away,
//! piece by piece into storage.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use crate::{
    app::App,
    backend::{ImageSink, SinkError},
    db,
    image::{Filter, InvalidImage, Metadata},
    storage::{Key, ObjectWriter, StorageError},
    tasks::{Image, Task, store},
};

/// Of one picture, as an upstream sends it.
const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Keeps what one call of a backend gives. The pictures of an attempt that lost its lease stay under keys
/// of their own, which nothing refers to.
pub(super) struct StorageSink<'a> {
    app: &'a App,
    task: &'a Task,
    /// Which of the task's calls this is.
    call: u8,
    /// How many of the task's pictures are other calls' and come before.
    first: u8,
    current: Option<Current>,
    kept: Kept,
}

/// What a call has given.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) job: Option<String>,
    pub(super) usage: Option<Value>,
    /// Whole and stored, in the order they came.
    pub(super) images: Vec<Image>,
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
    pub(super) fn new(app: &'a App, task: &'a Task, call: usize, first: u8) -> Self {
        Self {
            app,
            task,
            call: u8::try_from(call).unwrap_or(u8::MAX),
            first,
            current: None,
            kept: Kept::default(),
        }
    }

    pub(super) fn into_kept(self) -> Kept {
        self.kept
    }

    pub(super) fn job(&self) -> Option<&str> {
        self.kept.job.as_deref()
    }

    /// Opens the object once its format, and so its key, is known.
    fn open(&self, current: &mut Current) {
        if current.object.is_none()
            && let Some(format) = current.filter.format()
        {
            let kept = u8::try_from(self.kept.images.len()).unwrap_or(u8::MAX);
            let seq = self.first.saturating_add(kept).saturating_add(1);
            let key = Key::image(self.task.id, self.task.fence, seq, format);
            let writer = self.app.storage.writer(&key);
            current.object = Some((key, writer));
        }
    }
}

#[async_trait]
impl ImageSink for StorageSink<'_> {
    async fn accepted(&mut self, job: &str) -> Result<(), SinkError> {
        self.kept.job = Some(job.to_owned());
        let (app, claim, call) = (self.app, (self.task.id, self.task.fence), self.call);
        let noted = async {
            let mut conn = db::acquire(&app.pool).await?;
            store::note_job(&mut conn, claim, call, job).await
        };
        match noted.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SinkError::Job("the task is another worker's now".into())),
            Err::<_, sqlx::Error>(error) => Err(SinkError::Job(Box::new(error))),
        }
    }

    fn usage(&mut self, usage: Value) {
        self.kept.usage = Some(usage);
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError> {
        let mut current = self.current.take().unwrap_or_else(|| Current {
            filter: Filter::new(Metadata::Strip, self.app.image_limits()),
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

    fn discard(&mut self) {
        self.current = None;
    }

    async fn finish(&mut self) -> Result<(), SinkError> {
        let damaged = || SinkError::NotAnImage(InvalidImage::Damaged);
        let current = self.current.take().ok_or_else(damaged)?;
        let info = current.filter.finish().map_err(SinkError::NotAnImage)?;
        let (key, writer) = current.object.ok_or_else(damaged)?;
        let bytes = writer.finish().await.map_err(not_stored)?;
        self.kept.images.push(Image {
            object: key.to_string(),
            format: info.format,
            bytes,
            width: info.width,
            height: info.height,
        });
        Ok(())
    }
}

fn not_stored(error: StorageError) -> SinkError {
    SinkError::Storage(Box::new(error))
}
