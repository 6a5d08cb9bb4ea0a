//! What holds for every store.

use bytes::Bytes;
use easel::{
    clock::Clock,
    ids,
    image::Format,
    storage::{Key, Storage},
};

use super::{HELD_BYTES_MAX, collect, image_key, random_bytes, read, write};

const UPLOAD_BYTES: usize = 20 * 1024 * 1024;

/// Checks all of it.
pub(super) async fn check(storage: &Storage) {
    storage.check().await.unwrap();
    small_object(storage).await;
    ranges(storage).await;
    empty_object(storage).await;
    large_object(storage).await;
    dropped_writers(storage).await;
    held_images(storage).await;
    images_of_a_task(storage).await;
    let keys = [image_key(), image_key(), image_key()];
    write(storage, &keys[0], b"one").await;
    write(storage, &keys[2], b"three").await;
    // The middle one was never written.
    storage.delete(&keys).await.unwrap();
    storage.delete(&keys).await.unwrap();
    for key in &keys {
        assert!(storage.head(key).await.unwrap().is_none());
    }
}

async fn small_object(storage: &Storage) {
    let key = Key::upload(Clock::default().now(), ids::row_id(), Format::Jpeg);
    assert!(storage.head(&key).await.unwrap().is_none());
    assert!(storage.read(&key, None).await.unwrap().is_none());
    assert_eq!(write(storage, &key, b"seventy bytes").await, 13);
    let info = storage.head(&key).await.unwrap().unwrap();
    assert_eq!(info.size, 13);
    assert!(info.etag.starts_with('"') && info.etag.ends_with('"'));
    let age = Clock::default().now() - info.last_modified;
    assert!(age.num_seconds().abs() < 10, "{age}");
    let object = storage.read(&key, None).await.unwrap().unwrap();
    assert_eq!((object.size, &object.etag), (13, &info.etag));
    assert_eq!(read(storage, &key).await.unwrap(), b"seventy bytes");
    // The same key again, as when a task is retried under the same fence.
    write(storage, &key, b"else").await;
    assert_eq!(read(storage, &key).await.unwrap(), b"else");
}

async fn ranges(storage: &Storage) {
    let (key, bytes) = (image_key(), random_bytes(700_000));
    write(storage, &key, &bytes).await;
    for range in [
        0..1,
        0..700_000,
        5..699_999,
        262_144..524_288,
        699_999..700_000,
    ] {
        let wanted = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let object = storage.read(&key, Some(range.clone())).await.unwrap();
        let object = object.unwrap();
        assert_eq!(object.size, 700_000);
        assert!(collect(object.stream).await == bytes[wanted], "{range:?}");
    }
    let beyond = storage.read(&key, Some(699_990..800_000)).await.unwrap();
    assert_eq!(collect(beyond.unwrap().stream).await, bytes[699_990..]);
    let outside = storage.read(&key, Some(700_000..700_001)).await;
    assert!(outside.is_err());
    let absent = storage.read(&image_key(), Some(0..1)).await.unwrap();
    assert!(absent.is_none());
}

async fn empty_object(storage: &Storage) {
    let key = image_key();
    assert_eq!(write(storage, &key, b"").await, 0);
    assert_eq!(storage.head(&key).await.unwrap().unwrap().size, 0);
    assert_eq!(read(storage, &key).await.unwrap(), b"");
}

/// 20 MiB in chunks that divide no buffer evenly, and at once.
async fn large_object(storage: &Storage) {
    let bytes = random_bytes(UPLOAD_BYTES);
    for piece_bytes in [99_991, UPLOAD_BYTES] {
        let key = image_key();
        let mut writer = storage.writer(&key);
        for piece in bytes.chunks(piece_bytes) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert!(storage.head(&key).await.unwrap().is_none());
        assert_eq!(writer.finish().await.unwrap(), UPLOAD_BYTES as u64);
        assert!(read(storage, &key).await.unwrap() == bytes);
        let middle = storage.read(&key, Some(10_000_000..10_000_003)).await;
        let middle = collect(middle.unwrap().unwrap().stream).await;
        assert_eq!(middle, bytes[10_000_000..10_000_003]);
    }
}

async fn dropped_writers(storage: &Storage) {
    for size in [10, 1_000_000, UPLOAD_BYTES] {
        let key = image_key();
        let mut writer = storage.writer(&key);
        for piece in random_bytes(size).chunks(500_000) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        drop(writer);
        assert!(storage.head(&key).await.unwrap().is_none());
    }
}

/// Held in memory, and on the local disk where memory is short.
async fn held_images(storage: &Storage) {
    let held = async |bytes: &[u8]| {
        let mut image = storage.hold(std::time::Duration::from_secs(1)).await;
        let mut left = bytes;
        for length in [5, 99_991, 3_000, 1, 70_000].into_iter().cycle() {
            let (piece, later) = left.split_at(left.len().min(length));
            image.write(Bytes::copy_from_slice(piece)).await;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        assert_eq!(image.bytes(), bytes.len() as u64);
        image
    };
    let larger_than_memory = random_bytes(3 * HELD_BYTES_MAX + 5);
    for bytes in [b"".as_slice(), b"seventy bytes", &larger_than_memory] {
        let key = image_key();
        let image = held(bytes).await;
        assert_eq!(storage.keep(&key, image).await.unwrap(), bytes.len() as u64);
        assert!(read(storage, &key).await.unwrap() == bytes);
    }
    // One has the memory and moves to the disk as it grows, the other begins there. Space is freed, too.
    for _ in 0..4 {
        let (one, other) = tokio::join!(held(&larger_than_memory), held(&larger_than_memory));
        storage.keep(&image_key(), one).await.unwrap();
        drop(other);
    }
}

async fn images_of_a_task(storage: &Storage) {
    let (task, neighbour) = (ids::row_id(), ids::row_id());
    assert_eq!(storage.images_of(task).await.unwrap(), []);
    let keys =
        [(1, 1), (1, 2), (4, 1)].map(|(fence, seq)| Key::image(task, fence, seq, Format::Png));
    for key in &keys {
        write(storage, key, b"image").await;
    }
    // In the same folder, and next in the order of names.
    let folder_mate = uuid::Uuid::from_u128(task.uuid().as_u128() + (1 << 12)).into();
    write(
        storage,
        &Key::image(folder_mate, 1, 1, Format::Png),
        b"else",
    )
    .await;
    write(storage, &Key::image(neighbour, 1, 1, Format::Png), b"else").await;
    let mut found = storage.images_of(task).await.unwrap();
    found.sort_by_key(Key::fence_and_seq);
    assert_eq!(found, keys);
}
