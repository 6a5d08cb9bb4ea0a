//! Receives a backend's images: each passes the filter that checks it and strips its metadata, and
//! once it is whole it is stored, however long that takes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    app::App,
    backend::{ImageSink, SinkError},
    db,
    image::{Filter, InvalidImage, Metadata},
    storage::{HeldImage, Key, StorageError},
    tasks::{Image, Task, store},
};

/// Of a route's timeout, the images of a call may spend this part waiting for memory.
const PATIENCE_SHARE: u32 = 4;
/// The most bytes of one image as an upstream sends it.
const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Stores what one backend call delivers. Images of an attempt that lost its lease stay under keys
/// of their own: the next attempt adopts them, or they are swept.
pub(super) struct StorageSink<'a> {
    app: &'a App,
    task: &'a Task,
    /// The index of this call among the task's calls.
    call: u8,
    /// The positions of this call's images in the task, from 1.
    seqs: Vec<u8>,
    /// How long the call's images may still wait for memory: the route's timeout goes on meanwhile.
    patience: Duration,
    current: Option<Current>,
    job: Option<String>,
    usage: Option<Value>,
    /// In order of arrival.
    storing: Vec<Storing>,
}

/// What a call has delivered.
#[derive(Default)]
pub(super) struct Kept {
    /// The upstream's handle of the job, if it has one.
    pub(super) job: Option<String>,
    /// The usage that the upstream reported.
    pub(super) usage: Option<Value>,
    /// Whole and stored, with their positions in the task.
    pub(super) images: Vec<(u8, Image)>,
    /// Why whole images are missing.
    pub(super) not_stored: Option<SinkError>,
}

struct Current {
    filter: Filter,
    received: usize,
    /// What the filter has let through; empty between two pieces.
    ready: Vec<Bytes>,
    /// `None`: more images than requested, which are dropped.
    held: Option<HeldImage>,
}

/// A whole image that is being stored.
struct Storing {
    seq: u8,
    image: Image,
    stored: AbortOnDropHandle<Result<u64, StorageError>>,
}

impl<'a> StorageSink<'a> {
    /// A sink for the call with this index, which delivers the images at these positions within the route's timeout.
    pub(super) fn new(
        app: &'a App,
        task: &'a Task,
        call: usize,
        seqs: Vec<u8>,
        timeout: Duration,
    ) -> Self {
        Self {
            app,
            task,
            call: u8::try_from(call).unwrap_or(u8::MAX),
            seqs,
            patience: timeout / PATIENCE_SHARE,
            current: None,
            job: None,
            usage: None,
            storing: Vec::new(),
        }
    }

    /// The upstream's job handle, once the call has one.
    pub(super) fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    /// Waits until all images are stored, at most until `deadline`: the route's timeout limits the upstream only.
    pub(super) async fn into_kept(self, deadline: Instant) -> Kept {
        let mut kept = Kept {
            job: self.job,
            usage: self.usage,
            ..Kept::default()
        };
        for Storing { seq, image, stored } in self.storing {
            let error = match timeout_at(deadline, stored).await {
                Ok(Ok(Ok(bytes))) => {
                    kept.images.push((seq, Image { bytes, ..image }));
                    continue;
                }
                Ok(Ok(Err(error))) => error.into(),
                Ok(Err(lost)) => lost.into(),
                Err(elapsed) => elapsed.into(),
            };
            kept.not_stored = Some(SinkError::Storage(error));
        }
        kept
    }

    async fn begin(&mut self) -> Current {
        let is_wanted = self.storing.len() < self.seqs.len();
        let since = Instant::now();
        let held = if is_wanted {
            Some(self.app.storage.hold(self.patience).await)
        } else {
            None
        };
        self.patience = self.patience.saturating_sub(since.elapsed());
        Current {
            filter: Filter::new(Metadata::Strip, self.app.image_limits()),
            received: 0,
            ready: Vec::new(),
            held,
        }
    }
}

#[async_trait]
impl ImageSink for StorageSink<'_> {
    async fn accepted(&mut self, job: &str) -> Result<(), SinkError> {
        self.job = Some(job.to_owned());
        let (app, claim, call) = (self.app, (self.task.id, self.task.fence), self.call);
        let noted = async {
            let mut conn = db::acquire(&app.pool).await?;
            store::note_job(&mut conn, claim, call, job).await
        };
        match app.pool.in_time(noted).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SinkError::Job("another worker has claimed the task".into())),
            Err::<_, sqlx::Error>(error) => Err(SinkError::Job(Box::new(error))),
        }
    }

    fn usage(&mut self, usage: Value) {
        self.usage = Some(usage);
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.begin().await,
        };
        current.received += piece.len();
        if current.received > IMAGE_BYTES_MAX {
            return Err(SinkError::NotAnImage(InvalidImage::Damaged));
        }
        if let Some(held) = &mut current.held {
            held.receive(piece.len());
        }
        current
            .filter
            .push(piece, &mut current.ready)
            .map_err(SinkError::NotAnImage)?;
        for piece in current.ready.drain(..) {
            if let Some(held) = &mut current.held {
                held.write(piece).await;
            }
        }
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
        let (Some(held), Some(&seq)) = (current.held, self.seqs.get(self.storing.len())) else {
            return Ok(());
        };
        let key = Key::image(self.task.id, self.task.fence, seq, info.format);
        let image = Image {
            object: key.clone(),
            format: info.format,
            bytes: held.bytes(),
            width: info.width,
            height: info.height,
        };
        let storage = self.app.storage.clone();
        let keep = async move { storage.keep(&key, held).await }.in_current_span();
        let stored = AbortOnDropHandle::new(self.app.shutdown.tracker.spawn(keep));
        self.storing.push(Storing { seq, image, stored });
        Ok(())
    }
}
