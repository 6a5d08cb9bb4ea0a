//! Storage: the same checks against local files and S3 stores.

mod every_store;
mod fresh;
mod full_disk;
mod local;
mod outage;
mod private;
mod reading;
mod s3;
mod synced;

use std::{fs::File, io::Read};

use bytes::Bytes;
use easel::{
    clock::Clock,
    config, ids,
    image::Format,
    storage::{Key, Storage, StorageError},
};
use futures_util::TryStreamExt;
use serde_json::json;
use tempfile::TempDir;

const PUBLIC_URL: &str = "http://gateway.example";
const HELD_BYTES_MAX: usize = 1024 * 1024;

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

async fn open(config: &config::Storage) -> Result<Storage, StorageError> {
    let unused = TempDir::new().unwrap();
    Storage::open(config, unused.path(), PUBLIC_URL, Clock::default()).await
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
        "inline_bytes_max": 1 << 20,
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
