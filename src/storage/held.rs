//! Generated images that are not stored yet. They have been paid for, so every byte is held where it can be written
//! again: in memory up to a limit, then in a file on the local disk.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::staging::{StagedFile, blocking};
use crate::private_files::{self, Access};

/// Unit in which capacity is allocated, in bytes.
const UNIT: u64 = 1024;
/// Memory is allocated in blocks of this size. An image held in a file has one block that is not counted.
const BLOCK_BYTES: usize = 64 * 1024;
/// Wait between two attempts while neither memory nor disk has capacity.
const RETRY: Duration = Duration::from_millis(500);

/// Capacity for images that are not stored yet. All of them share it.
pub(super) struct Capacity {
    memory: Pool,
    disk: Pool,
    folder: PathBuf,
    naming: Naming,
}

/// Whether files of held images are renamed to their key or stay nameless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Renamed: the store is on the same disk.
    Named,
    /// Nameless: nothing of them is left when the process ends.
    Nameless,
}

struct Pool {
    units: Arc<Semaphore>,
    total: u32,
}

/// An image that is being received or waits to be stored.
pub struct HeldImage {
    capacity: Arc<Capacity>,
    bytes: u64,
    /// The bytes in memory: all bytes if there is no file.
    blocks: Vec<Bytes>,
    last: Vec<u8>,
    memory: Option<OwnedSemaphorePermit>,
    spooled: Option<Spooled>,
}

/// The bytes in a file.
struct Spooled {
    file: Arc<StagedFile>,
    bytes: u64,
    /// The file's disk capacity, held as long as the file exists.
    disk: OwnedSemaphorePermit,
}

/// Where the bytes of a complete image are.
pub(super) enum Whole {
    /// In order.
    Memory(Vec<Bytes>),
    /// In a file, and how many bytes it has.
    File(Arc<StagedFile>, u64),
}

impl Capacity {
    /// Limits in bytes. Files go to `folder`.
    pub(super) fn new(memory_bytes: u64, disk_bytes: u64, folder: PathBuf, naming: Naming) -> Self {
        Self {
            memory: Pool::new(memory_bytes),
            disk: Pool::new(disk_bytes),
            folder,
            naming,
        }
    }

    /// An empty image, which takes capacity as it grows.
    pub(super) fn hold(self: &Arc<Self>) -> HeldImage {
        HeldImage {
            capacity: Arc::clone(self),
            bytes: 0,
            blocks: Vec::new(),
            last: Vec::new(),
            memory: None,
            spooled: None,
        }
    }

    /// Waits for memory for this many bytes and takes it at once.
    pub(super) async fn memory(&self, bytes: u64) -> io::Result<OwnedSemaphorePermit> {
        self.memory.take(self.memory.units_of(bytes)).await
    }

    fn create(&self) -> io::Result<StagedFile> {
        private_files::make_dir(&self.folder, Access::Owner)?;
        match self.naming {
            Naming::Named => StagedFile::create(&self.folder),
            Naming::Nameless => StagedFile::create_nameless(&self.folder),
        }
    }
}

impl Pool {
    fn new(bytes: u64) -> Self {
        // The maximum number of semaphore permits.
        let most = u32::MAX >> 3;
        let total = u32::try_from(bytes / UNIT).unwrap_or(most).min(most);
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Caps at the total capacity, so that one image never waits for more than exists.
    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).map_or(self.total, |units| units.min(self.total))
    }

    fn try_take(&self, units: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.units).try_acquire_many_owned(units).ok()
    }

    async fn take(&self, units: u32) -> io::Result<OwnedSemaphorePermit> {
        let taken = Arc::clone(&self.units).acquire_many_owned(units).await;
        taken.map_err(io::Error::other)
    }
}

impl HeldImage {
    /// Bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a piece. Waits while neither memory nor disk has capacity.
    pub async fn write(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len() as u64;
        while !piece.is_empty() {
            if self.last.len() == BLOCK_BYTES {
                self.blocks.push(std::mem::take(&mut self.last).into());
                if self.spooled.is_some() {
                    self.spool().await;
                }
            }
            let (now, later) = piece.split_at(piece.len().min(BLOCK_BYTES - self.last.len()));
            self.last.extend_from_slice(now);
            piece = later;
        }
        if self.spooled.is_none() && !self.is_in_memory() {
            self.spool().await;
        }
    }

    /// The complete image. No more bytes may follow.
    pub(super) async fn whole(&mut self) -> Whole {
        if !self.last.is_empty() {
            self.blocks.push(std::mem::take(&mut self.last).into());
        }
        if self.spooled.is_some() && !self.blocks.is_empty() {
            self.spool().await;
        }
        match &self.spooled {
            Some(spooled) => Whole::File(Arc::clone(&spooled.file), spooled.bytes),
            None => Whole::Memory(self.blocks.clone()),
        }
    }

    /// The capacity it takes from.
    pub(super) fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Whether there is memory for the whole image. Takes the missing memory.
    fn is_in_memory(&mut self) -> bool {
        let pool = &self.capacity.memory;
        let has = self
            .memory
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = (pool.units_of(self.bytes) as usize).saturating_sub(has);
        if missing == 0 {
            return true;
        }
        let Some(more) = u32::try_from(missing)
            .ok()
            .and_then(|units| pool.try_take(units))
        else {
            return false;
        };
        match &mut self.memory {
            Some(memory) => memory.merge(more),
            None => self.memory = Some(more),
        }
        true
    }

    /// Moves the bytes in memory to the file and frees the memory. If the disk fails, they stay in memory if there is
    /// enough by then.
    async fn spool(&mut self) {
        while let Err(error) = self.try_spool().await {
            tracing::warn!(%error, "could not write a held image to the local disk");
            // An empty file is dropped in favor of memory.
            if self
                .spooled
                .as_ref()
                .is_none_or(|spooled| spooled.bytes == 0)
                && self.is_in_memory()
            {
                self.spooled = None;
                return;
            }
            sleep(RETRY).await;
        }
        self.memory = None;
    }

    async fn try_spool(&mut self) -> io::Result<()> {
        if self.spooled.is_none() {
            let disk = self.capacity.disk.take(0).await?;
            let capacity = Arc::clone(&self.capacity);
            let file = blocking(move || Ok(Arc::new(capacity.create()?))).await?;
            let bytes = 0;
            self.spooled = Some(Spooled { file, bytes, disk });
        }
        let Some(spooled) = &mut self.spooled else {
            return Ok(());
        };
        let blocks = self.blocks.clone();
        let more: u64 = blocks.iter().map(|block| block.len() as u64).sum();
        let pool = &self.capacity.disk;
        let missing = pool.units_of(spooled.bytes + more) as usize;
        let missing = missing.saturating_sub(spooled.disk.num_permits());
        let units = u32::try_from(missing).map_err(io::Error::other)?;
        spooled.disk.merge(pool.take(units).await?);
        let (file, mut at) = (Arc::clone(&spooled.file), spooled.bytes);
        let write = move || {
            for block in blocks {
                file.write_at(&block, at)?;
                at += block.len() as u64;
            }
            Ok(())
        };
        blocking(write).await?;
        spooled.bytes += more;
        self.blocks.clear();
        Ok(())
    }
}
