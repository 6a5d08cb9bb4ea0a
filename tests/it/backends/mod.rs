//! The backends, each against a fake of its upstream: their common contract, and their differences.

mod async_job;
mod comfyui;
mod contract;
pub mod gemini;
mod openai;
mod sdapi;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use easel::{
    backend::{Backend, BackendError, GenerateRequest, ImageSink, Input, Registry, SinkError},
    config,
    image::{Format, ImageSize, InvalidImage, Resolution},
};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Map, Value};
use tokio::time::timeout;

use contract::FakeUpstream;

/// No backend may take this long.
const LONG: Duration = Duration::from_secs(20);

/// Collects what a backend delivers and reports.
#[derive(Default)]
struct Collected {
    jobs: Vec<String>,
    usage: Vec<Value>,
    images: Vec<Vec<u8>>,
    under_way: Vec<u8>,
}

#[async_trait]
impl ImageSink for Collected {
    async fn accepted(&mut self, job: &str) -> Result<(), SinkError> {
        self.jobs.push(job.to_owned());
        Ok(())
    }

    fn usage(&mut self, usage: Value) {
        self.usage.push(usage);
    }

    async fn write(&mut self, piece: bytes::Bytes) -> Result<(), SinkError> {
        assert!(!piece.is_empty());
        self.under_way.extend_from_slice(&piece);
        Ok(())
    }

    fn discard(&mut self) {
        self.under_way.clear();
    }

    async fn finish(&mut self) -> Result<(), SinkError> {
        let image = std::mem::take(&mut self.under_way);
        // The gateway's filter decides whether it is an image; here, an HTML page is not.
        if image.starts_with(b"<html") {
            return Err(SinkError::NotAnImage(InvalidImage::Damaged));
        }
        self.images.push(image);
        Ok(())
    }
}

/// The backend with these settings, as TOML.
fn backend_of(settings: &str) -> Arc<dyn Backend> {
    let settings: config::Backend = toml::from_str(settings).unwrap();
    let all = BTreeMap::from([("it".to_owned(), settings)]);
    let registry = Registry::open(&all).unwrap();
    Arc::clone(registry.get("it").unwrap())
}

/// Generates the request with a backend, and returns what it delivered.
async fn generate_by(
    backend: &dyn Backend,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let result = timeout(LONG, backend.generate(request, &mut collected)).await;
    let result = result.unwrap_or_else(|_| panic!("the backend did not return"));
    (collected, result)
}

/// Generates the request with a backend of these settings.
async fn generate_with(
    settings: &str,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    generate_by(&*backend_of(settings), request).await
}

/// Generates the request with a backend for the fake.
async fn generate(
    fake: &impl FakeUpstream,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    generate_with(&fake.settings(), request).await
}

/// A request for `n` wide images of the fake's model.
fn wanted(fake: &impl FakeUpstream, n: u8) -> GenerateRequest {
    GenerateRequest {
        model: fake.model(),
        ..request(n)
    }
}

/// A request for `n` wide images.
fn request(n: u8) -> GenerateRequest {
    GenerateRequest {
        model: "gpt-image-2".into(),
        prompt: "a heron".into(),
        n,
        ratio: "2:1".parse().unwrap(),
        resolution: Resolution::OneK,
        size: ImageSize {
            width: 64,
            height: 32,
        },
        quality: None,
        references: vec![],
        mask: None,
        options: Map::new(),
        extra: Map::new(),
        job: None,
    }
}

/// An input that arrives in chunks.
fn input(format: Format, bytes: &[u8]) -> Input {
    let pieces: Vec<_> = bytes
        .chunks(100)
        .map(bytes::Bytes::copy_from_slice)
        .collect();
    Input {
        format,
        length: bytes.len() as u64,
        open: Arc::new(move || {
            let pieces = pieces.clone();
            async move { Ok(stream::iter(pieces).map(Ok).boxed()) }.boxed()
        }),
        link: Some(Arc::new(|| {
            async { Ok("https://gateway.example/f/object/1-a/x".to_owned()) }.boxed()
        })),
    }
}
