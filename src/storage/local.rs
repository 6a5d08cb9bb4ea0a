//! Objects as files of a directory. A file is written aside and renamed when whole, so a reader never
//! meets half an object. Nothing is synced: a power cut can take the objects of the last seconds along.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use tokio::task::spawn_blocking;

use super::{
    Disposition, Link, ObjectInfo, ObjectRead, StorageError,
    key::Key,
    link::LinkSigner,
    local_writer::{LocalWriter, TempFile},
};
use crate::clock::Clock;

pub(super) struct Local {
    root: PathBuf,
    /// Where files are until they are whole.
    drafts: PathBuf,
    links: LinkSigner,
}

const READ_BYTES: u64 = 256 * 1024;
/// No writer lives as long: what is older was left by a process that was killed.
const DRAFT_AGE_MAX: Duration = Duration::from_hours(24);

/// What a local store is opened with.
pub(super) struct Options<'a> {
    pub(super) root: PathBuf,
    pub(super) public_url: &'a str,
    pub(super) link_ttl: Duration,
    pub(super) clock: Clock,
}

impl Local {
    pub(super) fn open(options: Options<'_>) -> Result<Self, StorageError> {
        let root = std::path::absolute(&options.root)
            .map_err(StorageError::local("find the directory"))?;
        let drafts = root.join(".drafts");
        fs::create_dir_all(&drafts).map_err(StorageError::local("make the directory"))?;
        remove_old_drafts(&drafts, options.clock.now())
            .map_err(StorageError::local("clean the directory"))?;
        let links = LinkSigner::open(
            &root.join(".signing-key"),
            options.public_url,
            options.link_ttl,
            options.clock,
        )
        .map_err(StorageError::local("read or make the signing key"))?;
        Ok(Self {
            root,
            drafts,
            links,
        })
    }

    pub(super) fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    pub(super) fn writer(&self, key: &Key) -> LocalWriter {
        LocalWriter::new(self.drafts.clone(), self.path(key))
    }

    pub(super) async fn read(
        &self,
        key: &Key,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectRead>, StorageError> {
        let path = self.path(key);
        let opened = blocking(move || open_existing(&path))
            .await
            .map_err(StorageError::local("open an object"))?;
        let Some((file, info)) = opened else {
            return Ok(None);
        };
        let range = range.unwrap_or(0..info.size);
        if info.size > 0 && range.start >= range.end.min(info.size) {
            let (Range { start, end }, size) = (range, info.size);
            return Err(StorageError::Range { start, end, size });
        }
        let reader = Reader {
            file,
            at: range.start,
            end: range.end.min(info.size),
        };
        let pieces = stream::try_unfold(reader, |reader| async move {
            if reader.at == reader.end {
                return Ok(None);
            }
            blocking(move || reader.next()).await.map(Some)
        });
        let stream = pieces
            .map(|piece| piece.map_err(StorageError::local("read an object")))
            .boxed();
        Ok(Some(ObjectRead::new(info, stream)))
    }

    pub(super) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StorageError> {
        let path = self.path(key);
        blocking(move || open_existing(&path))
            .await
            .map(|opened| opened.map(|(_, info)| info))
            .map_err(StorageError::local("look for an object"))
    }

    pub(super) async fn delete(&self, keys: &[Key]) -> Result<(), StorageError> {
        let paths: Vec<PathBuf> = keys.iter().map(|key| self.path(key)).collect();
        let delete_all = move || {
            for path in paths {
                absent_is_fine(fs::remove_file(path))?;
            }
            Ok(())
        };
        blocking(delete_all)
            .await
            .map_err(StorageError::local("delete an object"))
    }

    pub(super) fn link(&self, key: &Key, disposition: &Disposition) -> Link {
        self.links.link(key, disposition)
    }

    pub(super) fn verify(&self, path: &str) -> Option<(Key, Disposition)> {
        self.links.verify(path)
    }

    /// Writes a file, and removes it.
    pub(super) async fn check(&self) -> Result<(), StorageError> {
        let drafts = self.drafts.clone();
        blocking(move || TempFile::create(&drafts)?.write_all(b"check"))
            .await
            .map_err(StorageError::local("write a file"))
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }
}

struct Reader {
    file: File,
    at: u64,
    end: u64,
}

impl Reader {
    fn next(mut self) -> io::Result<(Bytes, Self)> {
        let wanted = READ_BYTES.min(self.end - self.at);
        let mut piece = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        self.file.seek(SeekFrom::Start(self.at))?;
        let got = (&self.file).take(wanted).read_to_end(&mut piece)? as u64;
        if got < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got;
        Ok((piece.into(), self))
    }
}

/// Runs a file operation where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(operation).await?
}

fn open_existing(path: &Path) -> io::Result<Option<(File, ObjectInfo)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    let last_modified = DateTime::<Utc>::from(meta.modified()?);
    let (seconds, nanos, size) = (meta.mtime(), meta.mtime_nsec(), meta.size());
    let info = ObjectInfo {
        size,
        last_modified,
        etag: format!("\"{seconds:x}-{nanos:x}-{size:x}\""),
    };
    Ok(Some((file, info)))
}

fn remove_old_drafts(drafts: &Path, now: DateTime<Utc>) -> io::Result<()> {
    for entry in fs::read_dir(drafts)? {
        let entry = entry?;
        // Another process may be renaming its drafts meanwhile.
        let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) else {
            continue;
        };
        if DateTime::<Utc>::from(modified) + DRAFT_AGE_MAX < now {
            absent_is_fine(fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
