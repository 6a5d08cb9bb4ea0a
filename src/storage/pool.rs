//! A limited number of bytes that many share.

use std::{io, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit in which bytes are given out.
const UNIT: u64 = 1024;

/// The bytes that are left, in units.
pub(super) struct Pool {
    units: Arc<Semaphore>,
    total: u32,
}

impl Pool {
    /// A pool of this many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        // The maximum number of semaphore permits.
        let most = u32::MAX >> 3;
        let total = u32::try_from(bytes / UNIT).unwrap_or(most).min(most);
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Caps at the total, so that nothing ever waits for more than exists.
    pub(super) fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).map_or(self.total, |units| units.min(self.total))
    }

    /// Takes units if they are there.
    pub(super) fn try_take(&self, units: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.units).try_acquire_many_owned(units).ok()
    }

    /// Takes bytes if all of them are there.
    pub(super) fn try_take_bytes(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        if units > self.total {
            return None;
        }
        self.try_take(units)
    }

    /// Waits for units.
    pub(super) async fn take(&self, units: u32) -> io::Result<OwnedSemaphorePermit> {
        let taken = Arc::clone(&self.units).acquire_many_owned(units).await;
        taken.map_err(io::Error::other)
    }
}
