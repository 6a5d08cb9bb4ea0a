//! Local files: atomic, cleaned up, and linked to by signed links.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use easel::{
    clock::Clock,
    storage::{Disposition, Storage, StorageError},
};
use serde_json::json;

use super::{PUBLIC_URL, config, every_store, image_key, random_bytes, read, write};

#[tokio::test]
async fn local_files() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let storage = open_local(folder.path(), &clock).await;
    let root = folder.path().join("objects");
    assert_eq!(storage.describe(), format!("file://{}", root.display()));
    every_store::check(&storage).await;
    // A write that was in progress when its writer was dropped ends first.
    let cleaned = async {
        while file_count(&root.join(".staging")) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let cleaned = tokio::time::timeout(Duration::from_secs(10), cleaned).await;
    cleaned.expect("staged files are left behind");
    local_links(&storage, &clock).await;
}

#[tokio::test]
async fn a_local_object_is_visible_only_when_whole() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open_local(folder.path(), &Clock::default()).await;
    let (key, bytes) = (image_key(), random_bytes(1024 * 1024));
    write(&storage, &key, b"what was there before").await;
    let mut writer = storage.writer(&key);
    for piece in bytes.chunks(100_000) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        assert_eq!(
            read(&storage, &key).await.unwrap(),
            b"what was there before"
        );
    }
    writer.finish().await.unwrap();
    assert_eq!(read(&storage, &key).await.unwrap(), bytes);
}

#[tokio::test]
async fn staged_files_of_a_killed_process_are_deleted_a_day_later() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    open_local(folder.path(), &clock).await;
    let staging = folder.path().join("objects/.staging");
    std::fs::write(staging.join("left"), "half an image").unwrap();
    open_local(folder.path(), &clock).await;
    assert_eq!(file_count(&staging), 1);
    clock.advance(Duration::from_hours(25));
    open_local(folder.path(), &clock).await;
    assert_eq!(file_count(&staging), 0);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open_local(folder.path(), &Clock::default()).await;
    storage.check().await.unwrap();
    std::fs::remove_dir_all(folder.path().join("objects")).unwrap();
    let error = storage.check().await.unwrap_err();
    assert_eq!(error.to_string(), "could not write a file in local storage");
    let error = storage.writer(&image_key()).finish().await.unwrap_err();
    assert!(matches!(error, StorageError::Local { .. }), "{error:?}");
}

async fn local_links(storage: &Storage, clock: &Clock) {
    let key = image_key();
    let save = Disposition::Attachment {
        file_name: "a-1.png".to_owned(),
    };
    for disposition in [Disposition::Inline, save] {
        let link = storage.link(&key, disposition.clone()).await.unwrap();
        let path = link.url.strip_prefix("http://gateway.example/f/object/");
        let path = path.unwrap().to_owned();
        let linked = storage.verify(&path).unwrap();
        assert_eq!((&linked.key, linked.disposition), (&key, disposition));
        let forged = path.replace(".png", ".jpg");
        assert_eq!(storage.verify(&forged), None);
        clock.advance(Duration::from_secs(601));
        assert_eq!(storage.verify(&path), None);
        assert!(link.expires_at <= clock.now());
    }
}

async fn open_local(folder: &Path, clock: &Clock) -> Storage {
    let config = config(&json!({}));
    Storage::open(&config, folder, PUBLIC_URL, clock.clone())
        .await
        .unwrap()
}

fn file_count(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}
