//! Staging files: files that are being written, under temporary names, until they are complete.

use std::{
    fs::{self, File},
    io::{self, IoSlice},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::task::spawn_blocking;

use crate::{ids, private_files};

/// The most slices of one write: `IOV_MAX`.
const SLICES_MAX: usize = 1024;

/// A file that is removed on drop unless it was published.
pub(super) struct StagedFile {
    file: File,
    path: PathBuf,
    /// Nothing is left at `path` to remove.
    published: AtomicBool,
    /// The system has lost some of its bytes. Later syncs would falsely succeed.
    damaged: AtomicBool,
}

impl StagedFile {
    /// A file with a random name, which only its owner can read.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(ids::random_hex());
        let mut options = private_files::options();
        let file = options
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            published: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
        })
    }

    /// A nameless file. Nothing of it is left, however the process ends.
    pub(super) fn create_nameless(folder: &Path) -> io::Result<Self> {
        let staged = Self::create(folder)?;
        fs::remove_file(&staged.path)?;
        staged.published.store(true, Ordering::Relaxed);
        Ok(staged)
    }

    /// Can be repeated after a failure.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Writes blocks one after the other, with as few system calls as possible. Can be repeated after a failure.
    pub(super) fn write_blocks_at(&self, blocks: &[Bytes], mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = blocks.iter().map(|block| IoSlice::new(block)).collect();
        let mut left = &mut slices[..];
        // Skips slices that are empty.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let most = left.len().min(SLICES_MAX);
            match rustix::io::pwritev(&self.file, &left[..most], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Its first `length` bytes.
    pub(super) fn read(&self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Returns once the bytes survive a power failure.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.damaged.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let synced = self.file.sync_data();
        self.damaged.store(synced.is_err(), Ordering::Relaxed);
        synced
    }

    /// Can be repeated: a later step may have failed.
    pub(super) fn rename(&self, target: &Path) -> io::Result<()> {
        if !self.published.load(Ordering::Relaxed) {
            fs::rename(&self.path, target)?;
            self.published.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published.load(Ordering::Relaxed) {
            // If removal fails now, the file is removed when the store is opened at least a day later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes files last written before `before`. A killed process left them.
pub(super) fn remove_old(folder: &Path, before: DateTime<Utc>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may be publishing its files at the same time.
        let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) else {
            continue;
        };
        if DateTime::<Utc>::from(modified) < before {
            absent_is_fine(fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

/// The result of a deletion, without the error of a file that does not exist.
pub(super) fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs a file operation on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(operation).await?
}
