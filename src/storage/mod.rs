//! Stores bytes in a local directory or any S3 store, behind one interface.

mod circuit;
mod error;
mod fresh;
mod held;
mod keep;
mod key;
mod link;
mod local;
mod local_writer;
mod pool;
mod publish;
mod s3;
mod s3_requests;
mod s3_writer;
mod staging;
mod steady;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;

pub use circuit::Trouble;
pub use error::StorageError;
pub use fresh::Expectation;
pub use held::HeldImage;
pub use key::{InvalidKey, Key};
pub use link::{Disposition, Link, Linked};
pub use steady::SteadyRead;

use crate::{clock::Clock, config, ids::TaskId, private_files};
use circuit::Circuit;
use fresh::Fresh;
use held::{Capacity, Naming};
use local::Local;
use local_writer::LocalWriter;
use publish::Durability;
use s3::S3;
use s3_writer::S3Writer;

/// The configured store. Clones share it.
#[derive(Clone)]
pub struct Storage {
    store: Store,
    circuit: Arc<Circuit>,
    /// Capacity for images that are not stored yet.
    capacity: Arc<Capacity>,
    fresh: Arc<Fresh>,
}

#[derive(Clone)]
enum Store {
    Local(Arc<Local>),
    S3(Arc<S3>),
}

/// Writes one object. It becomes visible when it is finished, and never if the writer is dropped before.
pub struct ObjectWriter {
    sink: Sink,
    circuit: Arc<Circuit>,
    bytes: u64,
}

enum Sink {
    Local(LocalWriter),
    S3(Box<S3Writer>),
}

/// Metadata of an object.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// Size of the whole object, in bytes.
    pub size: u64,
    /// When the object was last written.
    pub last_modified: DateTime<Utc>,
    /// The `ETag` header value, with its quotes.
    pub etag: String,
}

/// An object, or a range of it, as it is read.
pub struct ObjectRead {
    /// Size of the whole object, in bytes.
    pub size: u64,
    /// When the object was last written.
    pub last_modified: DateTime<Utc>,
    /// The `ETag` header value, with its quotes.
    pub etag: String,
    /// The bytes of the object or of the range.
    pub stream: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl Storage {
    /// Creates the directory or bucket if it is missing, and checks that it is writable.
    pub async fn open(
        config: &config::Storage,
        data_dir: &Path,
        public_url: &str,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        let root = match &config.url {
            None => {
                private_files::make_data_dir(data_dir)
                    .map_err(StorageError::local("create the data directory"))?;
                data_dir.join("objects")
            }
            Some(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| {
                StorageError::Settings(format!("{url} is not a directory, expected file:///path"))
            })?,
            Some(url) if url.scheme() == "s3" => {
                let store = Store::S3(Arc::new(S3::open(config, url, clock).await?));
                let spool = data_dir.join("spool");
                return Ok(Self::over(store, config, spool, Naming::Nameless));
            }
            Some(url) => {
                let text = format!("{url} is neither file:///path nor s3://bucket");
                return Err(StorageError::Settings(text));
            }
        };
        let local = Local::open(local::Options {
            root,
            public_url,
            link_ttl: config.link_ttl(),
            clock,
            durability: if config.fsync {
                Durability::Synced
            } else {
                Durability::Unsynced
            },
            free_bytes_min: config.free_bytes_min,
        })?;
        let staging = local.staging.clone();
        let store = Store::Local(Arc::new(local));
        let storage = Self::over(store, config, staging, Naming::Named);
        // A full disk is no reason not to serve existing objects.
        if let Err(error @ StorageError::Local { .. }) = storage.check().await {
            return Err(error);
        }
        Ok(storage)
    }

    fn over(store: Store, config: &config::Storage, spool: PathBuf, naming: Naming) -> Self {
        let circuit = Arc::new(Circuit::new());
        Circuit::start_probing(&circuit, store.clone());
        let (memory, disk) = (config.held_bytes_max, config.spool_bytes_max);
        Self {
            store,
            circuit,
            capacity: Arc::new(Capacity::new(memory, disk, spool, naming)),
            fresh: Arc::new(Fresh::new(config.inline_bytes_max)),
        }
    }

    /// Whether the store accepts writes at present. Check this before work that must be stored. It does no I/O.
    pub fn usable(&self) -> Result<(), Trouble> {
        self.circuit.trouble().map_or(Ok(()), Err)
    }

    /// Starts an object. The key determines its content type.
    pub fn writer(&self, key: &Key) -> ObjectWriter {
        let sink = match &self.store {
            Store::Local(local) => Sink::Local(LocalWriter::new(local, key)),
            Store::S3(s3) => Sink::S3(Box::new(S3Writer::new(s3, key))),
        };
        ObjectWriter {
            sink,
            circuit: Arc::clone(&self.circuit),
            bytes: 0,
        }
    }

    /// A request waits for the images of this task, to send their bytes: they stay in memory if there is enough.
    pub fn expect(&self, task: TaskId) -> Expectation {
        self.fresh.expect(task)
    }

    /// The keys of all images of a task, from all its attempts.
    pub async fn images_of(&self, task: TaskId) -> Result<Vec<Key>, StorageError> {
        match &self.store {
            Store::Local(local) => local.images_of(task).await,
            Store::S3(s3) => s3.images_of(task).await,
        }
    }

    /// Returns `None` if the object does not exist. A range must start within the object; its end is clipped.
    pub async fn read(
        &self,
        key: &Key,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectRead>, StorageError> {
        match &self.store {
            Store::Local(local) => local.read(key, range).await,
            Store::S3(s3) => s3.read(key, range).await,
        }
    }

    /// Returns `None` if the object does not exist.
    pub async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StorageError> {
        match &self.store {
            Store::Local(local) => local.head(key).await,
            Store::S3(s3) => s3.head(key).await,
        }
    }

    /// Deletes objects. Missing ones are not an error.
    pub async fn delete(&self, keys: &[Key]) -> Result<(), StorageError> {
        match &self.store {
            Store::Local(local) => local.delete(keys).await,
            Store::S3(s3) => s3.delete(keys).await,
        }
    }

    /// A URL for the object that is valid for the configured time, whether or not the object exists.
    pub async fn link(&self, key: &Key, disposition: Disposition) -> Result<Link, StorageError> {
        match &self.store {
            Store::Local(local) => Ok(local.link(key, &disposition)),
            Store::S3(s3) => s3.link(key, &disposition).await,
        }
    }

    /// Resolves a link from [`Storage::link`], given its part after `/f/object/`. Returns `None` if the link is forged
    /// or expired, and always for an S3 store, which serves its own links.
    pub fn verify(&self, path: &str) -> Option<Linked> {
        match &self.store {
            Store::Local(local) => local.verify(path),
            Store::S3(_) => None,
        }
    }

    /// Whether the store is writable now. Fails within seconds.
    pub async fn check(&self) -> Result<(), StorageError> {
        self.circuit.probe(&self.store).await
    }

    /// The location, without secrets: `file:///path` or `s3://bucket at https://endpoint/`.
    pub fn describe(&self) -> String {
        self.store.describe()
    }
}

impl Store {
    async fn check(&self) -> Result<(), StorageError> {
        match self {
            Self::Local(local) => local.check().await,
            Self::S3(s3) => s3.check().await,
        }
    }

    async fn check_free_space(&self) -> Result<(), StorageError> {
        match self {
            Self::Local(local) => local.check_free_space().await,
            Self::S3(_) => Ok(()),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Local(local) => local.describe(),
            Self::S3(s3) => s3.describe(),
        }
    }
}

impl ObjectRead {
    fn new(info: ObjectInfo, stream: BoxStream<'static, Result<Bytes, StorageError>>) -> Self {
        Self {
            size: info.size,
            last_modified: info.last_modified,
            etag: info.etag,
            stream,
        }
    }
}

impl ObjectWriter {
    /// Appends a piece. Waits while the store is slower than the writer, so that the buffer stays bounded.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), StorageError> {
        self.bytes += piece.len() as u64;
        let written = match &mut self.sink {
            Sink::Local(writer) => writer.write(&piece).await,
            Sink::S3(writer) => writer.write(&piece).await,
        };
        if written.is_err() {
            self.circuit.record(&written);
        }
        written
    }

    /// Makes the object visible, replaces one with the same key, and returns its length in bytes.
    pub async fn finish(self) -> Result<u64, StorageError> {
        let Self {
            sink,
            circuit,
            bytes,
        } = self;
        let finish = async {
            match sink {
                Sink::Local(writer) => writer.finish().await,
                Sink::S3(writer) => writer.finish().await,
            }
        };
        circuit.watch(finish).await.map(|()| bytes)
    }
}
