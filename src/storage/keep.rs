//! Stores held images, however often that takes: whoever waits gives up, not this.

use std::{error::Error, time::Duration};

use tokio::time::sleep;

use super::{HeldImage, Key, Storage, StorageError, Store};

/// Between two tries, doubled each time.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

impl Storage {
    /// Begins an image that must not be lost.
    pub fn hold(&self) -> HeldImage {
        self.capacity.hold()
    }

    /// Stores an image, in place of one with the same key. While the store fails it waits and tries again: it
    /// returns an error only where no other try can end otherwise, and is to be dropped when time is up.
    pub async fn keep(&self, key: &Key, mut image: HeldImage) -> Result<u64, StorageError> {
        let mut wait = WAIT_MIN;
        loop {
            let stored = self.circuit.watch(self.try_keep(key, &mut image)).await;
            match stored {
                Ok(()) => return Ok(image.bytes()),
                Err(error) if error.trouble().is_none() => return Err(error),
                Err(error) => tracing::warn!(
                    error = &error as &dyn Error,
                    object = key.as_str(),
                    "an image could not be stored, trying again"
                ),
            }
            sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
            wait = (wait * 2).min(WAIT_MAX);
            self.circuit.closed().await;
        }
    }

    async fn try_keep(&self, key: &Key, image: &mut HeldImage) -> Result<(), StorageError> {
        let whole = image.whole().await;
        match &self.store {
            Store::Local(local) => local.keep(key, whole).await,
            Store::S3(s3) => s3.keep(key, whole, image.capacity()).await,
        }
    }
}
