//! The backends, each against a fake of its upstream: their common contract, and their differences.

mod async_job;
mod comfyui;
mod contract;
pub mod gemini;
mod openai;
mod sdapi;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use easel::{
    backend::{Backend, GenerateRequest, ImageSink, Input, Registry, SinkError},
    config,
    image::{Format, ImageSize, InvalidImage, Resolution},
};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Map, Value};

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
