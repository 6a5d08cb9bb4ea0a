//! Storage: the same checks against local files and S3 stores.

mod outage;
mod private;
mod reading;
mod synced;

use std::{fs::File, io::Read, path::Path, time::Duration};

use bytes::Bytes;
use easel::{
    clock::Clock,
    config, ids,
    image::Format,
    storage::{Disposition, Key, Storage, StorageError},
};
use futures_util::TryStreamExt;
use reqwest::{StatusCode, header};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY, plain_client};

const PUBLIC_URL: &str = "http://gateway.example";
const UPLOAD_BYTES: usize = 20 * 1024 * 1024;
const HELD_BYTES_MAX: usize = 1024 * 1024;

#[tokio::test]
async fn local_files() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let storage = open_local(folder.path(), &clock).await;
    let root = folder.path().join("objects");
    assert_eq!(storage.describe(), format!("file://{}", root.display()));
    every_store(&storage).await;
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

#[tokio::test]
async fn s3s() {
    let server = S3Server::s3s().await;
    s3_store(&server).await;
    let storage = open(&s3_config(&server)).await.unwrap();
    parts_of_dropped_writers_are_deleted(&server).await;
    the_store_goes_down(server, &storage).await;
}

#[tokio::test]
async fn seaweedfs() {
    let Some(server) = S3Server::seaweedfs().await else {
        return;
    };
    s3_store(&server).await;
    let storage = open(&s3_config(&server)).await.unwrap();
    the_store_goes_down(server, &storage).await;
}

#[tokio::test]
async fn settings_that_name_no_store_are_refused() {
    for url in [
        "ftp://host/x",
        "s3:///x",
        "s3://pics/a%20b",
        "file://host/x",
    ] {
        let error = open(&config(&json!({"url": url}))).await.err().unwrap();
        assert!(matches!(error, StorageError::Settings(_)), "{url}");
        assert!(error.to_string().contains("s3://bucket") || url.starts_with("file"));
    }
}

/// What holds for every store.
async fn every_store(storage: &Storage) {
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
        let mut image = storage.hold();
        for piece in bytes.chunks(99_991) {
            image.write(piece).await;
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
    // Each has half of the memory and then moves to the disk, where space is freed as well.
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
    let folder_mate = uuid::Uuid::from_u128(task.as_u128() + (1 << 12));
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

/// What holds for every S3 store. The bucket is missing at first.
async fn s3_store(server: &S3Server) {
    let config = s3_config(server);
    let storage = open(&config).await.unwrap();
    let description = format!("s3://pics at {}/", server.endpoint);
    assert_eq!(storage.describe(), description);
    every_store(&storage).await;
    s3_link(&storage).await;
    s3_attachment(&storage).await;
    s3_expired_link(server).await;

    // A second process finds the bucket; one with a prefix shares it and sees other objects.
    let again = open(&config).await.unwrap();
    let mut prefixed = s3_settings(server);
    prefixed["url"] = json!("s3://pics/some/prefix");
    let prefixed = open(&self::config(&prefixed)).await.unwrap();
    let key = image_key();
    write(&storage, &key, b"shared").await;
    assert_eq!(read(&again, &key).await.unwrap(), b"shared");
    assert!(read(&prefixed, &key).await.is_none());
    write(&prefixed, &key, b"apart").await;
    assert_eq!(read(&prefixed, &key).await.unwrap(), b"apart");
    assert_eq!(read(&again, &key).await.unwrap(), b"shared");

    // Any region but the first must be named when a bucket is created.
    let mut elsewhere = s3_settings(server);
    elsewhere["url"] = json!("s3://elsewhere");
    elsewhere["region"] = json!("eu-central-1");
    let elsewhere = open(&self::config(&elsewhere)).await.unwrap();
    write(&elsewhere, &key, b"far away").await;
    assert_eq!(read(&elsewhere, &key).await.unwrap(), b"far away");

    wrong_credentials(server).await;
    public_endpoint(server, &key).await;
}

async fn s3_link(storage: &Storage) {
    let key = Key::image(ids::row_id(), 1, 0, Format::Webp);
    let bytes = random_bytes(6 * 1024 * 1024);
    for bytes in [&bytes[..70], &bytes[..]] {
        write(storage, &key, bytes).await;
        let link = storage.link(&key, Disposition::Inline).await.unwrap();
        let response = plain_client().get(&link.url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "image/webp");
        assert!(response.bytes().await.unwrap() == bytes);
        let forged = link.url.replace("X-Amz-Expires=600", "X-Amz-Expires=601");
        assert_ne!(forged, link.url);
        let response = plain_client().get(forged).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
    assert_eq!(storage.verify(&format!("1-00/{key}")), None);
}

async fn s3_attachment(storage: &Storage) {
    let key = image_key();
    write(storage, &key, b"image").await;
    let save = Disposition::Attachment {
        file_name: "a b.png".to_owned(),
    };
    let link = storage.link(&key, save).await.unwrap();
    let response = plain_client().get(&link.url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let wanted = "attachment; filename=\"a_b.png\"";
    assert_eq!(response.headers()[header::CONTENT_DISPOSITION], wanted);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "image/png");
    assert_eq!(response.bytes().await.unwrap(), "image");
}

/// The store uses its own clock: the link must be fetched after it has expired for the store.
async fn s3_expired_link(server: &S3Server) {
    let mut settings = s3_settings(server);
    settings["link_ttl_s"] = json!(1);
    let storage = open(&config(&settings)).await.unwrap();
    let key = image_key();
    write(&storage, &key, b"image").await;
    let link = storage.link(&key, Disposition::Inline).await.unwrap();
    let signed = |url: &str| plain_client().get(url).send();
    assert_eq!(signed(&link.url).await.unwrap().status(), StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let late = signed(&link.url).await.unwrap().status();
    assert_eq!(late, StatusCode::FORBIDDEN);
}

async fn wrong_credentials(server: &S3Server) {
    for (name, codes) in [
        ("access_key_id", ["InvalidAccessKeyId", "NotSignedUp"]),
        ("secret_access_key", ["SignatureDoesNotMatch"; 2]),
    ] {
        let mut settings = s3_settings(server);
        settings[name] = json!("not-the-right-one");
        let error = open(&config(&settings)).await.err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, StorageError::Refused { .. }), "{text}");
        let wanted = format!("s3://pics at {}/ answered 403: ", server.endpoint);
        let detail = text.strip_prefix(&wanted).unwrap();
        assert!(codes.iter().any(|code| detail.starts_with(code)), "{text}");
    }
}

/// Links are signed for the host by which clients reach the store, everything else goes to the endpoint.
async fn public_endpoint(server: &S3Server, key: &Key) {
    let mut settings = s3_settings(server);
    settings["public_endpoint"] = json!("https://images.example:8443");
    let storage = open(&config(&settings)).await.unwrap();
    assert_eq!(read(&storage, key).await.unwrap(), b"shared");
    let link = storage.link(key, Disposition::Inline).await.unwrap();
    let wanted = format!("https://images.example:8443/pics/{key}?X-Amz-");
    assert!(link.url.starts_with(&wanted), "{}", link.url);
}

/// Parts are not objects, yet would occupy space forever; they are deleted in the background.
async fn parts_of_dropped_writers_are_deleted(server: &S3Server) {
    let parts = || {
        let entries = std::fs::read_dir(server.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().contains("upload"))
            .count()
    };
    let gone = async {
        while parts() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), gone).await;
    assert!(in_time.is_ok(), "{} parts are left", parts());
}

async fn the_store_goes_down(server: S3Server, storage: &Storage) {
    storage.check().await.unwrap();
    let config = s3_config(&server);
    drop(server);
    let error = storage.check().await.unwrap_err();
    assert!(
        matches!(error, StorageError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(open(&config).await.is_err());
}

async fn open_local(folder: &Path, clock: &Clock) -> Storage {
    let config = config(&json!({}));
    Storage::open(&config, folder, PUBLIC_URL, clock.clone())
        .await
        .unwrap()
}

async fn open(config: &config::Storage) -> Result<Storage, StorageError> {
    let unused = TempDir::new().unwrap();
    Storage::open(config, unused.path(), PUBLIC_URL, Clock::default()).await
}

fn s3_config(server: &S3Server) -> config::Storage {
    config(&s3_settings(server))
}

fn s3_settings(server: &S3Server) -> serde_json::Value {
    json!({
        "url": "s3://pics",
        "endpoint": server.endpoint,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
    })
}

/// The defaults of the section, with these changes.
fn config(settings: &serde_json::Value) -> config::Storage {
    let mut all = json!({
        "url": "",
        "endpoint": "",
        "public_endpoint": "",
        "region": "us-east-1",
        "path_style": true,
        "access_key_id": "",
        "secret_access_key": "",
        "link_ttl_s": 600,
        "fsync": true,
        "free_bytes_min": 0,
        "held_bytes_max": HELD_BYTES_MAX,
        "spool_bytes_max": 64 << 20,
    });
    for (name, value) in settings.as_object().unwrap() {
        all[name] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

fn image_key() -> Key {
    Key::image(ids::row_id(), 1, 0, Format::Png)
}

fn random_bytes(count: usize) -> Vec<u8> {
    // The system's generator, because one compiled without optimisation takes seconds for 20 MiB.
    let mut bytes = vec![0; count];
    let mut source = File::open("/dev/urandom").unwrap();
    source.read_exact(&mut bytes).unwrap();
    bytes
}

async fn write(storage: &Storage, key: &Key, bytes: &[u8]) -> u64 {
    let mut writer = storage.writer(key);
    writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    writer.finish().await.unwrap()
}

async fn read(storage: &Storage, key: &Key) -> Option<Vec<u8>> {
    let object = storage.read(key, None).await.unwrap()?;
    Some(collect(object.stream).await)
}

async fn collect(
    stream: impl futures_util::Stream<Item = Result<Bytes, StorageError>> + Unpin,
) -> Vec<u8> {
    let add = |mut all: Vec<u8>, piece: Bytes| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    };
    stream.try_fold(Vec::new(), add).await.unwrap()
}

fn file_count(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}
