//! Images that requests wait for as bytes: they are sent from memory as long as there is enough, else read again.

use std::time::Duration;

use bytes::Bytes;
use easel::{
    ids::{self, TaskId},
    image::Format,
    storage::{Key, Storage, StorageError},
};
use serde_json::json;

use super::{collect, config, open, random_bytes};

const INLINE_BYTES_MAX: usize = 300_000;

async fn small_memory(folder: &tempfile::TempDir) -> Storage {
    limited(folder, INLINE_BYTES_MAX).await
}

async fn limited(folder: &tempfile::TempDir, bytes_max: usize) -> Storage {
    let url = format!("file://{}", folder.path().display());
    let settings = config(&json!({"url": url, "inline_bytes_max": bytes_max}));
    open(&settings).await.unwrap()
}

/// Stores an image and removes its object, so that it can only come from memory.
async fn kept_in_memory_only(storage: &Storage, task: TaskId, seq: u8, bytes: &[u8]) -> Key {
    let key = Key::image(task, 1, seq, Format::Png);
    let mut image = storage.hold(Duration::ZERO).await;
    image.write(Bytes::copy_from_slice(bytes)).await;
    storage.keep(&key, image).await.unwrap();
    storage.delete(std::slice::from_ref(&key)).await.unwrap();
    key
}

async fn in_memory(storage: &Storage, key: &Key) -> Option<Vec<u8>> {
    match storage.read_steadily(key.clone()).await {
        Ok(read) => Some(collect(read.into_stream()).await),
        Err(error) => {
            assert!(matches!(error, StorageError::Missing { .. }), "{error:?}");
            None
        }
    }
}

#[tokio::test]
async fn an_expected_image_is_read_from_memory_until_no_request_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let storage = small_memory(&folder).await;
    let (task, bytes) = (ids::row_id(), random_bytes(100_000));
    let (one, other) = (storage.expect(task), storage.expect(task));
    let key = kept_in_memory_only(&storage, task, 1, &bytes).await;
    assert_eq!(in_memory(&storage, &key).await.as_ref(), Some(&bytes));
    drop(one);
    let reading = storage.read_steadily(key.clone()).await.unwrap();
    drop(other);
    assert_eq!(in_memory(&storage, &key).await, None);
    assert_eq!(collect(reading.into_stream()).await, bytes);

    let key = kept_in_memory_only(&storage, ids::row_id(), 1, &bytes).await;
    assert_eq!(in_memory(&storage, &key).await, None, "nobody expects it");
}

#[tokio::test]
async fn images_beyond_the_limit_are_read_again_while_others_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let storage = small_memory(&folder).await;
    let (task, bytes) = (ids::row_id(), random_bytes(INLINE_BYTES_MAX / 2 - 1024));
    let expectation = storage.expect(task);
    let mut keys = Vec::new();
    for seq in 1..=3 {
        keys.push(kept_in_memory_only(&storage, task, seq, &bytes).await);
    }
    assert!(in_memory(&storage, &keys[0]).await.is_some());
    let being_sent = storage.read_steadily(keys[1].clone()).await.unwrap();
    assert_eq!(in_memory(&storage, &keys[2]).await, None);

    // A client that takes nothing holds the memory of its image, and of no other.
    drop(expectation);
    let other = ids::row_id();
    let _expectation = storage.expect(other);
    let first = kept_in_memory_only(&storage, other, 1, &bytes).await;
    let second = kept_in_memory_only(&storage, other, 2, &bytes).await;
    assert!(in_memory(&storage, &first).await.is_some());
    assert_eq!(in_memory(&storage, &second).await, None);
    assert_eq!(collect(being_sent.into_stream()).await, bytes);
}

#[tokio::test]
async fn an_image_larger_than_the_limit_is_never_kept() {
    let folder = tempfile::tempdir().unwrap();
    for bytes_max in [0, 99_999] {
        let storage = limited(&folder, bytes_max).await;
        let task = ids::row_id();
        let _expectation = storage.expect(task);
        let key = kept_in_memory_only(&storage, task, 1, &random_bytes(100_000)).await;
        assert_eq!(in_memory(&storage, &key).await, None, "{bytes_max}");
    }
}
