//! Objects as files of a directory. A file is written in staging and renamed once it is complete and synced, so readers
//! never see a partial object and a power failure loses none.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};

use super::{
    Disposition, Link, Linked, ObjectInfo, ObjectRead, StorageError,
    held::Whole,
    key::Key,
    link::LinkSigner,
    publish::{Durability, Publisher},
    staging::{StagedFile, absent_is_fine, blocking, remove_old},
};
use crate::{
    clock::Clock,
    ids::TaskId,
    private_files::{self, Access},
};

/// A store in one directory, which several processes may share.
pub(super) struct Local {
    root: PathBuf,
    /// Directory of files that are not complete yet.
    pub(super) staging: PathBuf,
    /// Completes files.
    pub(super) publisher: Arc<Publisher>,
    links: LinkSigner,
    free_bytes_min: u64,
}

const READ_BYTES: u64 = 256 * 1024;
/// No writer lives this long. Older files were left by a killed process.
const DRAFT_AGE_MAX: Duration = Duration::from_hours(24);

/// Options for opening a local store.
pub(super) struct Options<'a> {
    /// The directory; it is created if it does not exist.
    pub(super) root: PathBuf,
    /// The prefix of every link.
    pub(super) public_url: &'a str,
    /// How long a link can be used.
    pub(super) link_ttl: Duration,
    /// Tells when links expire.
    pub(super) clock: Clock,
    /// Whether files survive a power failure.
    pub(super) durability: Durability,
    /// The space on the disk below which nothing is written.
    pub(super) free_bytes_min: u64,
}

impl Local {
    /// Opens the store, and removes staging files that killed processes left.
    pub(super) fn open(options: Options<'_>) -> Result<Self, StorageError> {
        let root = std::path::absolute(&options.root)
            .map_err(StorageError::local("find the directory"))?;
        let staging = root.join(".staging");
        for dir in [&root, &staging] {
            private_files::make_dir(dir, Access::Owner)
                .map_err(StorageError::local("create the directory"))?;
        }
        remove_old(&staging, options.clock.now() - DRAFT_AGE_MAX)
            .map_err(StorageError::local("clean the directory"))?;
        let links = LinkSigner::open(
            &root.join(".signing-key"),
            options.public_url,
            options.link_ttl,
            options.clock,
        )
        .map_err(StorageError::local("read or create the signing key"))?;
        Ok(Self {
            publisher: Publisher::new(&root, options.durability),
            root,
            staging,
            links,
            free_bytes_min: options.free_bytes_min,
        })
    }

    /// The URL of the directory.
    pub(super) fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    /// Stores a complete image.
    pub(super) async fn keep(&self, key: &Key, image: Whole) -> Result<(), StorageError> {
        let staging = self.staging.clone();
        let write = move || {
            let blocks = match image {
                Whole::File(file, _) => return Ok(file),
                Whole::Memory(blocks) => blocks,
            };
            let file = StagedFile::create(&staging)?;
            file.write_blocks_at(&blocks, 0)?;
            Ok(Arc::new(file))
        };
        let published = self.publisher.publish(self.path(key), write).await;
        published.map_err(StorageError::local("store an image"))
    }

    /// The images of a task, from all its attempts.
    pub(super) async fn images_of(&self, task: TaskId) -> Result<Vec<Key>, StorageError> {
        let (folder, name) = Key::prefix_of(task);
        let dir = self.root.join(&folder);
        let list = move || {
            let entries = match fs::read_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut keys = Vec::new();
            for entry in entries {
                let file = entry?.file_name();
                let file = file.to_str().filter(|file| file.starts_with(&name));
                keys.extend(file.and_then(|file| format!("{folder}/{file}").parse::<Key>().ok()));
            }
            Ok(keys)
        };
        blocking(list)
            .await
            .map_err(StorageError::local("list the images of a task"))
    }

    /// Opens an object for reading, whole or in part. `None`: it does not exist. Fails if the range is not within it.
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

    /// The size and the time of an object; `None`: it does not exist.
    pub(super) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StorageError> {
        let path = self.path(key);
        blocking(move || open_existing(&path))
            .await
            .map(|opened| opened.map(|(_, info)| info))
            .map_err(StorageError::local("look for an object"))
    }

    /// Deletes objects. Those that do not exist are no error.
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

    /// A link to an object, which this gateway serves itself.
    pub(super) fn link(&self, key: &Key, disposition: &Disposition) -> Link {
        self.links.link(key, disposition)
    }

    /// Verifies the path of a link: see [`LinkSigner::verify`].
    pub(super) fn verify(&self, path: &str) -> Option<Linked> {
        self.links.verify(path)
    }

    /// Writes and removes a file, and checks the free space.
    pub(super) async fn check(&self) -> Result<(), StorageError> {
        let staging = self.staging.clone();
        blocking(move || StagedFile::create(&staging)?.write_at(b"check", 0))
            .await
            .map_err(StorageError::local("write a file"))?;
        self.check_free_space().await
    }

    /// Checks that at least `free_bytes_min` of the disk is free.
    pub(super) async fn check_free_space(&self) -> Result<(), StorageError> {
        let (root, least) = (self.root.clone(), self.free_bytes_min);
        let look = move || {
            let disk = rustix::fs::statvfs(&root)?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free >= least {
                return Ok(());
            }
            let text = format!("{free} bytes are free, storage.free_bytes_min is {least}");
            Err(io::Error::new(io::ErrorKind::StorageFull, text))
        };
        blocking(look)
            .await
            .map_err(StorageError::local("check the free space"))
    }

    /// The file of an object.
    pub(super) fn path(&self, key: &Key) -> PathBuf {
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
