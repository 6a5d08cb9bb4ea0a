//! Writes one file: pieces are gathered and written from a thread that may block, one batch while the
//! next one gathers. An object smaller than a batch costs a single trip to that thread.

use std::{
    fs::{self, File},
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{StorageError, local::blocking};
use crate::ids;

pub(super) struct LocalWriter {
    drafts: PathBuf,
    target: PathBuf,
    gathered: Vec<u8>,
    /// `None` while a batch is being written, and before the first one.
    draft: Option<TempFile>,
    writing: Option<JoinHandle<io::Result<Written>>>,
    /// The emptied buffer of the last batch.
    spare: Vec<u8>,
    /// A batch was written or lost: the object does not begin with what is gathered.
    begun: bool,
}

/// The draft so far and the batch, emptied.
type Written = (TempFile, Vec<u8>);

/// A file that is gone when it is dropped unless it was kept.
pub(super) struct TempFile {
    file: File,
    path: Option<PathBuf>,
}

/// A writer holds two of these at most.
const BATCH_BYTES: usize = 64 * 1024;

impl LocalWriter {
    pub(super) fn new(drafts: PathBuf, target: PathBuf) -> Self {
        Self {
            drafts,
            target,
            gathered: Vec::new(),
            draft: None,
            writing: None,
            spare: Vec::new(),
            begun: false,
        }
    }

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

    pub(super) async fn finish(mut self) -> Result<(), StorageError> {
        self.settle()
            .await
            .map_err(StorageError::local("write an object"))?;
        let Self {
            drafts,
            target,
            gathered,
            draft,
            begun,
            ..
        } = self;
        let finish = move || {
            let mut draft = match draft {
                Some(draft) => draft,
                None if begun => return Err(io::Error::other("an earlier write had failed")),
                None => TempFile::create(&drafts)?,
            };
            draft.write_all(&gathered)?;
            draft.keep_as(&target)
        };
        blocking(finish)
            .await
            .map_err(StorageError::local("finish an object"))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.settle().await?;
        let drafts = self.drafts.clone();
        let draft = self.draft.take();
        self.begun = true;
        let mut batch = mem::replace(&mut self.gathered, mem::take(&mut self.spare));
        self.writing = Some(spawn_blocking(move || {
            let mut draft = draft.map_or_else(|| TempFile::create(&drafts), Ok)?;
            draft.write_all(&batch)?;
            batch.clear();
            Ok((draft, batch))
        }));
        Ok(())
    }

    /// Waits for the batch under way. When the wait is given up and begun again, nothing is lost.
    async fn settle(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let written = writing.await;
        self.writing = None;
        let (draft, spare) = written??;
        (self.draft, self.spare) = (Some(draft), spare);
        Ok(())
    }
}

impl TempFile {
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(ids::random_hex());
        let file = File::create_new(&path)?;
        Ok(Self {
            file,
            path: Some(path),
        })
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn keep_as(mut self, target: &Path) -> io::Result<()> {
        let Some(path) = self.path.as_ref() else {
            return Ok(());
        };
        match (fs::rename(path, target), target.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                fs::rename(path, target)?;
            }
            (renamed, _) => renamed?,
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now goes when the store is opened a day later.
            let _ = fs::remove_file(path);
        }
    }
}
