//! Objects in an S3 store.

use std::{io, ops::Range, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    Attribute, AttributeValue, Attributes, BackoffConfig, GetOptions, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::HttpClient,
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use url::Url;

use super::{
    Disposition, Link, ObjectInfo, ObjectRead, StorageError,
    held::{Capacity, Whole},
    key::Key,
    s3_requests::{Bucket, Direct, http_client},
    staging::blocking,
};
use crate::{clock::Clock, config, ids::TaskId};

/// Base time limit for storing one image. A large image gets more.
const PUT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that was silent for so long is given up, and the request is sent once more over another.
const SILENCE_MAX: Duration = Duration::from_secs(4);
const TRIES: u32 = 2;
const BYTES_A_SECOND_MIN: u64 = 256 * 1024;

/// A store in one bucket, below a prefix.
pub(super) struct S3 {
    /// Sends requests to the endpoint that this gateway reaches.
    pub(super) store: AmazonS3,
    /// Signs URLs for the endpoint that clients reach. It sends no requests.
    signer: AmazonS3,
    bucket: Bucket,
    prefix: String,
    link_ttl: Duration,
    clock: Clock,
}

impl S3 {
    /// Opens the store; creates the bucket if it does not exist. Fails unless it is writable.
    pub(super) async fn open(
        config: &config::Storage,
        url: &Url,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        let (name, prefix) = bucket_and_prefix(url)?;
        let http = http_client()?;
        let region = if config.region.is_empty() {
            "us-east-1"
        } else {
            &config.region
        };
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => parse(&format!("https://s3.{region}.amazonaws.com"))?,
        };
        let build = |endpoint: &Url| {
            let bucket_url = bucket_url(endpoint, name, config.path_style)?;
            let store = builder(config, &bucket_url, &http)
                .with_region(region)
                .with_bucket_name(name)
                .build()
                .map_err(StorageError::s3("set up the client"))?;
            Ok::<_, StorageError>((store, bucket_url))
        };
        let (store, bucket_url) = build(&endpoint)?;
        let (signer, _) = build(config.public_endpoint.as_ref().unwrap_or(&endpoint))?;
        let bucket = Bucket {
            http: http.clone(),
            credentials: Arc::clone(store.credentials()),
            region: region.to_owned(),
            url: bucket_url,
            description: format!("s3://{name}{prefix} at {endpoint}"),
        };
        let s3 = Self {
            store,
            signer,
            bucket,
            prefix: prefix.to_owned(),
            link_ttl: config.link_ttl(),
            clock,
        };
        if !s3.bucket.probe(&s3.prefix).await? {
            s3.bucket.create().await?;
            s3.check().await?;
        }
        Ok(s3)
    }

    /// The bucket and its endpoint.
    pub(super) fn describe(&self) -> String {
        self.bucket.description.clone()
    }

    /// The object's path in the bucket.
    pub(super) fn path(&self, key: &Key) -> Path {
        Path::from(format!("{}/{key}", self.prefix))
    }

    /// Opens an object for reading, whole or in part. `None`: it does not exist.
    pub(super) async fn read(
        &self,
        key: &Key,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectRead>, StorageError> {
        let options = GetOptions {
            range: range.map(Into::into),
            ..GetOptions::default()
        };
        let path = self.path(key);
        let got = self.answered(|| self.store.get_opts(&path, options.clone()));
        let Some(got) = found(got.await?).map_err(StorageError::s3("open an object"))? else {
            return Ok(None);
        };
        let info = got.meta.clone().into();
        let stream = got
            .into_stream()
            .map(|piece| piece.map_err(StorageError::s3("read an object")))
            .boxed();
        Ok(Some(ObjectRead::new(info, stream)))
    }

    /// Stores a complete image in one request.
    pub(super) async fn keep(
        &self,
        key: &Key,
        image: Whole,
        capacity: &Capacity,
    ) -> Result<(), StorageError> {
        let (payload, _memory) = match image {
            Whole::Memory(blocks) => (PutPayload::from_iter(blocks), None),
            Whole::File(file, bytes) => {
                let read = async {
                    let memory = capacity.memory(bytes).await?;
                    let read = blocking(move || file.read(bytes)).await?;
                    io::Result::Ok((PutPayload::from(read), Some(memory)))
                };
                read.await
                    .map_err(StorageError::local("read a held image"))?
            }
        };
        let limit =
            PUT_TIMEOUT + Duration::from_secs(payload.content_length() as u64 / BYTES_A_SECOND_MIN);
        let options = PutOptions::from(attributes(key));
        let path = self.path(key);
        let put = self.store.put_opts(&path, payload, options);
        match timeout(limit, put).await {
            Ok(put) => put.map(drop).map_err(StorageError::s3("store an image")),
            Err(_) => Err(StorageError::NoAnswer {
                store: self.describe(),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// The images of a task, from all its attempts.
    pub(super) async fn images_of(&self, task: TaskId) -> Result<Vec<Key>, StorageError> {
        let (folder, name) = Key::prefix_of(task);
        let root = self.prefix.trim_start_matches('/');
        let root = if root.is_empty() {
            String::new()
        } else {
            format!("{root}/")
        };
        let prefix = format!("{root}{folder}/{name}");
        let list = || {
            self.store
                .list_paginated(Some(&prefix), PaginatedListOptions::default())
        };
        let listed = self
            .answered(list)
            .await?
            .map_err(StorageError::s3("list the images of a task"))?;
        let keys = listed.result.objects.iter().filter_map(|object| {
            let key = object.location.as_ref().strip_prefix(&root)?;
            key.parse::<Key>().ok()
        });
        Ok(keys.collect())
    }

    /// Sends a request that changes nothing, once more if it gets no answer. A pool may hold connections that went silent.
    async fn answered<T, F>(&self, send: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = T>,
    {
        for _ in 0..TRIES {
            if let Ok(answer) = timeout(SILENCE_MAX, send()).await {
                return Ok(answer);
            }
        }
        Err(StorageError::NoAnswer {
            store: self.describe(),
            seconds: (SILENCE_MAX * TRIES).as_secs(),
        })
    }

    /// The size and the time of an object; `None`: it does not exist.
    pub(super) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StorageError> {
        let path = self.path(key);
        let meta = found(self.answered(|| self.store.head(&path)).await?)
            .map_err(StorageError::s3("look for an object"))?;
        Ok(meta.map(Into::into))
    }

    /// Deletes objects. Those that do not exist are no error.
    pub(super) async fn delete(&self, keys: &[Key]) -> Result<(), StorageError> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        self.store
            .delete_stream(stream::iter(paths).boxed())
            .map(found)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(StorageError::s3("delete an object"))
    }

    /// A signed URL of an object, which clients fetch from the store itself.
    pub(super) async fn link(
        &self,
        key: &Key,
        disposition: &Disposition,
    ) -> Result<Link, StorageError> {
        let mut options = SignedUrlOptions::new();
        if matches!(disposition, Disposition::Attachment { .. }) {
            let name = "response-content-disposition";
            options = options.with_query([(name, disposition.to_string())]);
        }
        let expires_at = self.clock.now() + self.link_ttl;
        let url = self
            .signer
            .signed_url_opts(Method::GET, &self.path(key), self.link_ttl, &options)
            .await
            .map_err(StorageError::s3("sign a link"))?;
        Ok(Link {
            url: url.into(),
            expires_at,
        })
    }

    /// Whether the bucket exists and is writable.
    pub(super) async fn check(&self) -> Result<(), StorageError> {
        if self.bucket.probe(&self.prefix).await? {
            return Ok(());
        }
        Err(StorageError::Refused {
            store: self.describe(),
            status: 404,
            detail: "the bucket does not exist".to_owned(),
        })
    }
}

impl From<ObjectMeta> for ObjectInfo {
    fn from(meta: ObjectMeta) -> Self {
        let (size, changed) = (meta.size, meta.last_modified.timestamp());
        Self {
            size,
            last_modified: meta.last_modified,
            etag: meta
                .e_tag
                .unwrap_or_else(|| format!("\"{changed:x}-{size:x}\"")),
        }
    }
}

fn builder(config: &config::Storage, bucket_url: &Url, http: &HttpClient) -> AmazonS3Builder {
    let secret = config.secret_access_key.expose_secret();
    let builder = if config.access_key_id.is_empty() && secret.is_empty() {
        // Like AWS tools: the usual environment variables, or else the machine's metadata service.
        AmazonS3Builder::from_env()
    } else {
        AmazonS3Builder::new()
            .with_access_key_id(&config.access_key_id)
            .with_secret_access_key(secret)
    };
    builder
        .with_endpoint(bucket_url.as_str().trim_end_matches('/'))
        // Of the two styles, this one uses the endpoint unchanged, and it already contains the bucket.
        .with_virtual_hosted_style_request(true)
        .with_http_connector(Direct(http.clone()))
        // TLS already protects the bytes, and hashing them is the main cost of an upload.
        .with_unsigned_payload(bucket_url.scheme() == "https")
        // Many stores support only the plain DELETE.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 5,
            retry_timeout: Duration::from_secs(30),
        })
}

/// Splits `s3://bucket/some/prefix` into the bucket and `/some/prefix`, which is empty if there is none.
fn bucket_and_prefix(url: &Url) -> Result<(&str, &str), StorageError> {
    let prefix = url.path().trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    match url.host_str() {
        Some(bucket) if prefix.chars().all(plain) && !prefix.contains("//") => Ok((bucket, prefix)),
        _ => Err(StorageError::Settings(format!(
            "{url} is not a bucket, expected s3://bucket or s3://bucket/prefix, of A-Z a-z 0-9 - . _ /"
        ))),
    }
}

fn bucket_url(endpoint: &Url, bucket: &str, path_style: bool) -> Result<Url, StorageError> {
    let text = endpoint.as_str().trim_end_matches('/');
    if path_style {
        return parse(&format!("{text}/{bucket}"));
    }
    match text.split_once("://") {
        Some((scheme, rest)) => parse(&format!("{scheme}://{bucket}.{rest}")),
        None => parse(text),
    }
}

fn parse(text: &str) -> Result<Url, StorageError> {
    text.parse()
        .map_err(|error| StorageError::Settings(format!("{text} is not an s3 endpoint: {error}")))
}

fn found<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The headers that the store sends with an object.
pub(super) fn attributes(key: &Key) -> Attributes {
    let content_type = AttributeValue::from(key.content_type());
    let mut attributes = Attributes::from_iter([(Attribute::ContentType, content_type)]);
    if key.fence_and_seq().is_some() {
        attributes.insert(Attribute::CacheControl, IMAGE_CACHE.into());
    }
    attributes
}

/// An image never changes, and anyone with its link may read it.
const IMAGE_CACHE: &str = "public, max-age=31536000, immutable";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_two_kinds_of_address() {
        let aws = "https://s3.eu-west-1.amazonaws.com".parse().unwrap();
        let own = "http://127.0.0.1:8333/".parse().unwrap();
        let text = |endpoint, style| bucket_url(endpoint, "pics", style).unwrap().to_string();
        assert_eq!(
            text(&aws, false),
            "https://pics.s3.eu-west-1.amazonaws.com/"
        );
        assert_eq!(text(&aws, true), "https://s3.eu-west-1.amazonaws.com/pics");
        assert_eq!(text(&own, true), "http://127.0.0.1:8333/pics");
    }

    #[test]
    fn a_bucket_may_have_a_prefix() {
        let split = |text: &str| {
            let url = text.parse().unwrap();
            bucket_and_prefix(&url)
                .map(|(b, p)| (b.to_owned(), p.to_owned()))
                .ok()
        };
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(split("s3://pics"), pair("pics", ""));
        assert_eq!(split("s3://pics/"), pair("pics", ""));
        assert_eq!(split("s3://pics/a/b.c/"), pair("pics", "/a/b.c"));
        assert_eq!(split("s3://pics/a b"), None);
        assert_eq!(split("s3://pics//a"), None);
        assert_eq!(split("s3:///a"), None);
    }
}
