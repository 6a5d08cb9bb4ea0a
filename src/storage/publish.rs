//! Publishes complete files so that they survive a power failure: sync the bytes, rename the file, sync its directory.
//! Each publish runs on its own thread, because the file system commits concurrent syncs together.

use std::{
    collections::HashSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::staging::{StagedFile, blocking};
use crate::private_files::{self, Access};

/// Publishes the files of one store.
pub(super) struct Publisher {
    root: PathBuf,
    durability: Durability,
    /// Directories whose own names survive a power failure: their parents were synced after they were created.
    rooted: Mutex<HashSet<PathBuf>>,
}

/// Whether files must survive a power failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// They must. Every publish waits for the disk.
    Synced,
    /// They need not, as in tests.
    Unsynced,
}

impl Publisher {
    /// All targets are below `root`.
    pub(super) fn new(root: &Path, durability: Durability) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_path_buf(),
            durability,
            rooted: Mutex::default(),
        })
    }

    /// Runs a file's writes and renames it. Once this returns, only the loss of the disk can lose the file.
    pub(super) async fn publish(
        self: &Arc<Self>,
        target: PathBuf,
        write: impl FnOnce() -> io::Result<Arc<StagedFile>> + Send + 'static,
    ) -> io::Result<()> {
        let publisher = Arc::clone(self);
        blocking(move || publisher.publish_now(&target, &*write()?)).await
    }

    fn publish_now(&self, target: &Path, staged: &StagedFile) -> io::Result<()> {
        let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if self.durability == Durability::Unsynced {
            return rename(staged, target, folder);
        }
        staged.sync()?;
        rename(staged, target, folder)?;
        sync_dir(folder)?;
        if self.rooted().contains(folder) {
            return Ok(());
        }
        let parents = folder.ancestors().skip(1);
        for dir in parents.take_while(|dir| dir.starts_with(&self.root)) {
            sync_dir(dir)?;
        }
        self.rooted().insert(folder.to_path_buf());
        Ok(())
    }

    fn rooted(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.rooted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates the folder if it is missing.
fn rename(staged: &StagedFile, target: &Path, folder: &Path) -> io::Result<()> {
    match staged.rename(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_files::make_dir(folder, Access::Owner)?;
            staged.rename(target)
        }
        renamed => renamed,
    }
}
