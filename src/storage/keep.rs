//! Stores held images and retries until it succeeds. The caller gives up, not this module.

use std::{error::Error, time::Duration};

use tokio::time::sleep;

use super::{HeldImage, Key, Storage, StorageError, Store};
use crate::clock::jittered;

/// Wait between two attempts, doubled each time.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

impl Storage {
    /// Starts to hold an image that must not be lost. If there is no memory for it, waits a while, at most `patience`.
    pub async fn hold(&self, patience: Duration) -> HeldImage {
        self.capacity.hold(patience).await
    }

    /// Stores an image and replaces one with the same key. Waits and retries while the store fails. Returns an error
    /// only if no retry can succeed. The caller drops the future when its time is up.
    pub async fn keep(&self, key: &Key, mut image: HeldImage) -> Result<u64, StorageError> {
        let mut wait = WAIT_MIN;
        loop {
            let stored = self.circuit.watch(self.try_keep(key, &mut image)).await;
            match stored {
                Ok(()) => {
                    self.fresh.offer(key, &image);
                    return Ok(image.bytes());
                }
                Err(error) if error.trouble().is_none() => return Err(error),
                Err(error) => tracing::warn!(
                    error = &error as &dyn Error,
                    object = key.as_str(),
                    "could not store an image, retrying"
                ),
            }
            sleep(jittered(wait, 0.5..=1.0)).await;
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
