//! Gives whole files their names, so that they outlast a power cut: first the bytes are synced, then the
//! file is renamed, then its directory is synced. Each does so in a thread of its own: the file system commits
//! together what is synced at the same time.

use std::{
    collections::HashSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::staging::{StagedFile, blocking};
use crate::private_files::{self, Access};

pub(super) struct Publisher {
    root: PathBuf,
    durability: Durability,
    /// Directories whose own names outlast a power cut: their parents were synced since they were made.
    rooted: Mutex<HashSet<PathBuf>>,
}

/// Whether files are to outlast a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Synced,
    Unsynced,
}

impl Publisher {
    /// All targets lie below `root`.
    pub(super) fn new(root: &Path, durability: Durability) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_path_buf(),
            durability,
            rooted: Mutex::default(),
        })
    }

    /// Has a file written and gives it its name. When this returns, nothing short of the disk's end takes it away.
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

/// Makes the folder if it is missing.
fn rename(staged: &StagedFile, target: &Path, folder: &Path) -> io::Result<()> {
    match staged.rename(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_files::make_dir(folder, Access::Owner)?;
            staged.rename(target)
        }
        renamed => renamed,
    }
}
