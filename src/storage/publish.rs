//! Gives whole files their names, so that they outlast a power cut: first the bytes are synced, then the
//! file is renamed, then its directory is synced. Files that are whole at the same time share the last step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::staging::{StagedFile, blocking};
use crate::{
    batch::Batcher,
    private_files::{self, Access},
};

/// How many files may share a sync of their directories.
const BATCH_MAX: usize = 256;

pub(super) struct Publisher {
    root: Arc<PathBuf>,
    /// `None`: nothing is synced.
    batches: Option<Batcher<Whole, io::Result<()>>>,
}

struct Whole {
    staged: Arc<StagedFile>,
    target: PathBuf,
}

/// Whether files are to outlast a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Synced,
    Unsynced,
}

impl Publisher {
    /// All targets lie below `root`.
    pub(super) fn start(root: &Path, durability: Durability) -> Self {
        let root = Arc::new(root.to_path_buf());
        let batches = (durability == Durability::Synced).then(|| {
            let root = Arc::clone(&root);
            Batcher::start(BATCH_MAX, move |batch| {
                let root = Arc::clone(&root);
                async move {
                    let published = blocking(move || Ok(publish_all(&root, &batch))).await;
                    published.unwrap_or_default()
                }
            })
        });
        Self { root, batches }
    }

    /// Has a file written and gives it its name. When this returns, nothing short of the disk's end takes it away.
    pub(super) async fn publish(
        &self,
        target: PathBuf,
        write: impl FnOnce() -> io::Result<Arc<StagedFile>> + Send + 'static,
    ) -> io::Result<()> {
        let Some(batches) = &self.batches else {
            let root = Arc::clone(&self.root);
            return blocking(move || rename(&*write()?, &target, &root).map(drop)).await;
        };
        // Each in a thread of its own: the file system commits together what is synced at the same time.
        let staged = blocking(move || {
            let staged = write()?;
            staged.sync()?;
            Ok(staged)
        });
        let staged = staged.await?;
        let published = batches.call(Whole { staged, target }).await;
        published.unwrap_or_else(|closed| Err(io::Error::other(closed)))
    }
}

/// Renames all of them, then syncs each directory that has changed once.
fn publish_all(root: &Path, batch: &[Whole]) -> Vec<io::Result<()>> {
    let renamed: Vec<io::Result<BTreeSet<PathBuf>>> = batch
        .iter()
        .map(|whole| rename(&whole.staged, &whole.target, root))
        .collect();
    let changed: BTreeSet<&PathBuf> = renamed.iter().flatten().flatten().collect();
    let synced: BTreeMap<PathBuf, io::Result<()>> = changed
        .into_iter()
        .map(|dir| (dir.clone(), File::open(dir).and_then(|dir| dir.sync_all())))
        .collect();
    let outcome = |renamed: io::Result<BTreeSet<PathBuf>>| {
        for dir in renamed? {
            if let Some(Err(error)) = synced.get(&dir) {
                return Err(io::Error::new(error.kind(), error.to_string()));
            }
        }
        Ok(())
    };
    renamed.into_iter().map(outcome).collect()
}

/// Returns the directories that have changed: more than one where some had to be made.
fn rename(staged: &StagedFile, target: &Path, root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let Some(folder) = target.parent() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match staged.rename(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_files::make_dir(folder, Access::Owner)?;
            staged.rename(target)?;
            let made = folder.ancestors().take_while(|dir| dir.starts_with(root));
            Ok(made.map(Path::to_path_buf).collect())
        }
        renamed => renamed.map(|()| BTreeSet::from([folder.to_path_buf()])),
    }
}
