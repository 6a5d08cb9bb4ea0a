//! Images that requests wait for as bytes. They stay in memory from the moment they are stored until they are sent, so
//! that they are not read again. Where memory is short, they are.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{Key, held::HeldImage, pool::Pool};
use crate::ids::TaskId;

/// The images of all tasks whose bytes are expected.
pub(super) struct Fresh {
    memory: Pool,
    expected: Mutex<HashMap<TaskId, Expected>>,
}

#[derive(Default)]
struct Expected {
    /// How many requests wait.
    requests: usize,
    images: HashMap<Key, Arc<FreshImage>>,
}

/// An image as it was stored.
pub(super) struct FreshImage {
    /// In order.
    pub(super) blocks: Vec<Bytes>,
    /// Their length in all.
    pub(super) bytes: u64,
    _memory: OwnedSemaphorePermit,
}

/// A request that waits for the bytes of a task's images. Dropping it frees those that are not being sent.
pub struct Expectation {
    fresh: Arc<Fresh>,
    task: TaskId,
}

impl Fresh {
    /// Keeps at most this many bytes.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            memory: Pool::new(bytes_max),
            expected: Mutex::default(),
        }
    }

    /// A request waits for the images of this task.
    pub(super) fn expect(self: &Arc<Self>, task: TaskId) -> Expectation {
        self.lock().entry(task).or_default().requests += 1;
        Expectation {
            fresh: Arc::clone(self),
            task,
        }
    }

    /// Keeps an image that was just stored, if a request waits for it and there is memory.
    pub(super) fn offer(&self, key: &Key, image: &HeldImage) {
        let Some(task) = key.task() else { return };
        let mut expected = self.lock();
        let Some(expected) = expected.get_mut(&task) else {
            return;
        };
        let memory = || self.memory.try_take_bytes(image.memory_bytes());
        if let Some(blocks) = image.in_memory()
            && let Some(memory) = memory()
        {
            let image = FreshImage {
                blocks: blocks.to_vec(),
                bytes: image.bytes(),
                _memory: memory,
            };
            expected.images.insert(key.clone(), Arc::new(image));
        }
    }

    /// The image, if it was kept.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<FreshImage>> {
        self.lock().get(&key.task()?)?.images.get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut all = self.fresh.lock();
        if let Some(expected) = all.get_mut(&self.task) {
            expected.requests -= 1;
            if expected.requests == 0 {
                let images = mem::take(&mut expected.images);
                all.remove(&self.task);
                // Freeing megabytes takes a while.
                drop(all);
                drop(images);
            }
        }
    }
}
