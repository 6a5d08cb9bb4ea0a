//! Generated images that are not stored yet. They have been paid for, so every byte is held where it can be written
//! again: in memory up to a limit, then in a file on the local disk.

use std::{
    io, mem,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout},
};

use super::{
    pool::Pool,
    staging::{StagedFile, blocking},
};
use crate::private_files::{self, Access};

/// Shorter pieces are joined to one of about this length. An image in a file has as much in memory, which is not counted.
const BLOCK_BYTES: usize = 64 * 1024;
/// Pieces from this length on are kept as they are, without a copy.
const WHOLE_BYTES_MIN: usize = 4 * 1024;
/// The memory that an image takes before it is received: most images are not larger. While there is none, the image
/// stays where it is, in the upstream's socket, and the memory of its connection does not grow either.
const EXPECTED_BYTES: u64 = 2 * 1024 * 1024;
/// Waiting ends when no image got memory for this long: the others are slow to arrive, or cannot be stored.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest wait, for a caller that has the time. After that the image goes to the disk.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Wait between two attempts while neither memory nor disk has capacity.
const RETRY: Duration = Duration::from_millis(500);

/// Capacity for images that are not stored yet. All of them share it.
pub(super) struct Capacity {
    memory: Pool,
    /// How many images have begun with memory.
    begun: AtomicU64,
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

/// An image that is being received or waits to be stored.
pub struct HeldImage {
    capacity: Arc<Capacity>,
    bytes: u64,
    /// The bytes that were received for it: pieces may be slices of them.
    received: u64,
    /// The bytes in memory: all bytes if there is no file.
    blocks: Vec<Bytes>,
    /// Short pieces after the blocks.
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
            begun: AtomicU64::new(0),
            disk: Pool::new(disk_bytes),
            folder,
            naming,
        }
    }

    /// An empty image. Waits for the memory that it is expected to need, at most `patience`; beyond that it takes capacity
    /// as it grows.
    pub(super) async fn hold(self: &Arc<Self>, patience: Duration) -> HeldImage {
        let memory = self.expected_memory(patience).await;
        HeldImage {
            capacity: Arc::clone(self),
            bytes: 0,
            received: 0,
            blocks: Vec::new(),
            last: Vec::new(),
            memory,
            spooled: None,
        }
    }

    async fn expected_memory(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let longest = patience.min(PATIENCE_MAX);
        let mut take = pin!(self.memory(EXPECTED_BYTES));
        let since = Instant::now();
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            if let Ok(memory) = timeout(PATIENCE.min(longest), &mut take).await {
                self.begun.fetch_add(1, Ordering::Relaxed);
                return memory.ok();
            }
            let is_stuck = self.begun.load(Ordering::Relaxed) == begun;
            if is_stuck || since.elapsed() >= longest {
                return None;
            }
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

impl HeldImage {
    /// The length of the image so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts bytes that arrived for this image. Pieces that are slices of them keep all of them in memory.
    pub fn receive(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Appends a piece. Waits while neither memory nor disk has capacity.
    pub async fn write(&mut self, piece: Bytes) {
        self.bytes += piece.len() as u64;
        if piece.len() < WHOLE_BYTES_MIN {
            self.last.extend_from_slice(&piece);
            if self.last.len() >= BLOCK_BYTES {
                self.end_block();
            }
        } else {
            self.end_block();
            self.blocks.push(piece);
        }
        let must_spool = match &self.spooled {
            Some(_) => self.blocks.iter().map(Bytes::len).sum::<usize>() >= BLOCK_BYTES,
            None => !self.is_in_memory(),
        };
        if must_spool {
            self.spool().await;
        }
    }

    fn end_block(&mut self) {
        if !self.last.is_empty() {
            self.blocks.push(mem::take(&mut self.last).into());
        }
    }

    /// The complete image. No more bytes may follow.
    pub(super) async fn whole(&mut self) -> Whole {
        self.end_block();
        if self.spooled.is_some() && !self.blocks.is_empty() {
            self.spool().await;
        }
        if let Some(spooled) = &self.spooled {
            return Whole::File(Arc::clone(&spooled.file), spooled.bytes);
        }
        self.free_unneeded_memory();
        Whole::Memory(self.blocks.clone())
    }

    fn free_unneeded_memory(&mut self) {
        let needed = self.units() as usize;
        if let Some(memory) = &mut self.memory {
            drop(memory.split(memory.num_permits().saturating_sub(needed)));
        }
    }

    /// The memory that its bytes take, or would take if there were no file.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.bytes.max(self.received)
    }

    fn units(&self) -> u32 {
        self.capacity.memory.units_of(self.memory_bytes())
    }

    /// The bytes of a complete image that is not in a file.
    pub(super) fn in_memory(&self) -> Option<&[Bytes]> {
        self.spooled.is_none().then(|| &self.blocks[..])
    }

    /// The capacity it takes from.
    pub(super) fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Whether there is memory for the whole image. Takes the missing memory.
    fn is_in_memory(&mut self) -> bool {
        let has = self
            .memory
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = (self.units() as usize).saturating_sub(has);
        if missing == 0 {
            return true;
        }
        let Some(more) = u32::try_from(missing)
            .ok()
            .and_then(|units| self.capacity.memory.try_take(units))
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
        let (file, at) = (Arc::clone(&spooled.file), spooled.bytes);
        blocking(move || file.write_blocks_at(&blocks, at)).await?;
        spooled.bytes += more;
        self.blocks.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Memory for two images of the expected size.
    fn for_two() -> Arc<Capacity> {
        let folder = std::env::temp_dir();
        let memory = 2 * EXPECTED_BYTES;
        Arc::new(Capacity::new(memory, 0, folder, Naming::Nameless))
    }

    #[tokio::test]
    async fn an_image_waits_for_memory_as_long_as_others_get_it() {
        let capacity = for_two();
        let mut held = vec![
            capacity.hold(PATIENCE_MAX).await,
            capacity.hold(PATIENCE_MAX).await,
        ];
        let mut last = pin!(capacity.hold(PATIENCE_MAX));
        // Those that came before it take turns with the memory.
        for _ in 0..30 {
            capacity.begun.fetch_add(1, Ordering::Relaxed);
            assert!(timeout(PATIENCE / 20, &mut last).await.is_err());
        }
        held.pop();
        assert!(last.await.memory.is_some());
    }

    #[tokio::test]
    async fn an_image_does_not_wait_for_images_that_do_not_move() {
        let capacity = for_two();
        let _held = [
            capacity.hold(PATIENCE_MAX).await,
            capacity.hold(PATIENCE_MAX).await,
        ];
        let began = Instant::now();
        assert!(capacity.hold(PATIENCE_MAX).await.memory.is_none());
        assert!((PATIENCE..PATIENCE * 3).contains(&began.elapsed()));
    }

    #[tokio::test]
    async fn a_complete_image_frees_what_it_does_not_need() {
        let capacity = for_two();
        let mut small = [
            capacity.hold(PATIENCE_MAX).await,
            capacity.hold(PATIENCE_MAX).await,
        ];
        for image in &mut small {
            image.write(Bytes::from_static(b"small")).await;
            assert!(matches!(image.whole().await, Whole::Memory(_)));
        }
        assert!(
            capacity
                .hold(PATIENCE_MAX)
                .now_or_never()
                .unwrap()
                .memory
                .is_some()
        );
    }
}
