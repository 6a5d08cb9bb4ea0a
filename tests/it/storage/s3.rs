//! S3 stores: buckets, signed links, credentials, and what is left behind.

use std::time::{Duration, Instant};

use easel::{
    ids,
    image::Format,
    storage::{Disposition, Key, Storage, StorageError},
};
use reqwest::{StatusCode, header};
use serde_json::json;

use super::{config, every_store, image_key, open, random_bytes, read, write};
use crate::harness::{
    fault_proxy::{FaultProxy, Target},
    s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY, plain_client},
};

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

#[tokio::test(flavor = "multi_thread")]
async fn what_only_reads_is_asked_again_if_its_connection_went_silent() {
    let server = S3Server::s3s().await;
    let proxy = FaultProxy::start(Target::Tcp(server.address())).await;
    let mut settings = s3_settings(&server);
    settings["endpoint"] = json!(format!("http://{}", proxy.address()));
    let storage = open(&super::config(&settings)).await.unwrap();
    let task = ids::row_id();
    let key = Key::image(task, 1, 1, Format::Png);
    write(&storage, &key, b"image").await;
    for _ in 0..2 {
        proxy.freeze();
        let began = Instant::now();
        let images = storage.images_of(task).await.unwrap();
        assert_eq!(images, std::slice::from_ref(&key));
        proxy.freeze();
        assert!(storage.head(&key).await.unwrap().is_some());
        proxy.freeze();
        assert_eq!(read(&storage, &key).await.unwrap(), b"image");
        // Each waits for the silent connection once.
        assert!(began.elapsed() < Duration::from_secs(25));
    }
}

/// What holds for every S3 store. The bucket is missing at first.
async fn s3_store(server: &S3Server) {
    let config = s3_config(server);
    let storage = open(&config).await.unwrap();
    let description = format!("s3://pics at {}/", server.endpoint);
    assert_eq!(storage.describe(), description);
    every_store::check(&storage).await;
    s3_link(&storage).await;
    s3_attachment(&storage).await;
    s3_expired_link(server).await;

    // A second process finds the bucket; one with a prefix shares it and sees other objects.
    let again = open(&config).await.unwrap();
    let mut prefixed = s3_settings(server);
    prefixed["url"] = json!("s3://pics/some/prefix");
    let prefixed = open(&super::config(&prefixed)).await.unwrap();
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
    let elsewhere = open(&super::config(&elsewhere)).await.unwrap();
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
    settings["link_ttl_s"] = json!(3);
    let storage = open(&config(&settings)).await.unwrap();
    let key = image_key();
    write(&storage, &key, b"image").await;
    let link = storage.link(&key, Disposition::Inline).await.unwrap();
    let signed = |url: &str| plain_client().get(url).send();
    assert_eq!(signed(&link.url).await.unwrap().status(), StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(4_100)).await;
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
