//! Writes one file: gathers pieces into batches and writes each batch on a thread that may block, while the next batch
//! fills. An object smaller than a batch needs a single switch to that thread.

use std::{io, mem, path::PathBuf, sync::Arc};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{StorageError, key::Key, local::Local, staging::StagedFile};

/// An object that is being written. Dropping it leaves nothing behind.
pub(super) struct LocalWriter {
    local: Arc<Local>,
    target: PathBuf,
    gathered: Vec<u8>,
    /// `None` while a batch is being written, and before the first one.
    staged: Option<Staged>,
    writing: Option<JoinHandle<io::Result<Written>>>,
    /// The emptied buffer of the last batch.
    spare: Vec<u8>,
    /// A batch was written or lost, so the gathered bytes are not the start of the object.
    begun: bool,
}

/// The file so far, and the emptied batch buffer.
type Written = (Staged, Vec<u8>);

struct Staged {
    file: Arc<StagedFile>,
    bytes: u64,
}

/// A writer holds at most two batches.
const BATCH_BYTES: usize = 64 * 1024;

impl LocalWriter {
    /// Begins the object. No file exists until a batch is full.
    pub(super) fn new(local: &Arc<Local>, key: &Key) -> Self {
        Self {
            local: Arc::clone(local),
            target: local.path(key),
            gathered: Vec::new(),
            staged: None,
            writing: None,
            spare: Vec::new(),
            begun: false,
        }
    }

    /// Adds bytes. An error may belong to an earlier batch.
    pub(super) async fn write(&mut self, mut piece: &[u8]) -> Result<(), StorageError> {
        while !piece.is_empty() {
            if self.gathered.len() == BATCH_BYTES {
                self.flush()
                    .await
                    .map_err(StorageError::local("write an object"))?;
            }
            let room = BATCH_BYTES - self.gathered.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.gathered.extend_from_slice(now);
            piece = later;
        }
        Ok(())
    }

    /// Returns once the object exists under its key, complete.
    pub(super) async fn finish(mut self) -> Result<(), StorageError> {
        self.settle()
            .await
            .map_err(StorageError::local("write an object"))?;
        let Self {
            local,
            target,
            gathered,
            staged,
            begun,
            ..
        } = self;
        let staging = local.staging.clone();
        let write = move || {
            let mut staged = match staged {
                Some(staged) => staged,
                None if begun => return Err(io::Error::other("an earlier write failed")),
                None => Staged::create(&staging)?,
            };
            staged.append(&gathered)?;
            Ok(staged.file)
        };
        let published = local.publisher.publish(target, write).await;
        published.map_err(StorageError::local("finish an object"))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.settle().await?;
        let staging = self.local.staging.clone();
        let staged = self.staged.take();
        self.begun = true;
        let mut batch = mem::replace(&mut self.gathered, mem::take(&mut self.spare));
        self.writing = Some(spawn_blocking(move || {
            let mut staged = staged.map_or_else(|| Staged::create(&staging), Ok)?;
            staged.append(&batch)?;
            batch.clear();
            Ok((staged, batch))
        }));
        Ok(())
    }

    /// Waits for the batch in progress. Cancelling and repeating the wait loses nothing.
    async fn settle(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let written = writing.await;
        self.writing = None;
        let (staged, spare) = written??;
        (self.staged, self.spare) = (Some(staged), spare);
        Ok(())
    }
}

impl Staged {
    fn create(folder: &std::path::Path) -> io::Result<Self> {
        let file = Arc::new(StagedFile::create(folder)?);
        Ok(Self { file, bytes: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
