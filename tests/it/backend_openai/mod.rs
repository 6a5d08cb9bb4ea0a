//! The `openai` backend against a stand-in for its upstream.

mod answers;
mod errors;
mod requests;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use easel::{
    backend::{Backend, BackendError, Drawing, ImageSink, Input, Registry, SinkError},
    config,
    image::{Format, ImageSize},
};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Map, Value};

use crate::harness::upstream::Upstream;

/// Keeps what a backend delivers.
#[derive(Default)]
struct Collected {
    pictures: Vec<Vec<u8>>,
    under_way: Vec<u8>,
}

#[async_trait]
impl ImageSink for Collected {
    async fn write(&mut self, piece: bytes::Bytes) -> Result<(), SinkError> {
        assert!(!piece.is_empty());
        self.under_way.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), SinkError> {
        self.pictures.push(std::mem::take(&mut self.under_way));
        Ok(())
    }
}

/// The backend for `upstream`, with more settings beside its address and key.
fn backend(upstream: &Upstream, more: &str) -> Arc<dyn Backend> {
    backend_of(&upstream.settings(more))
}

fn backend_of(settings: &str) -> Arc<dyn Backend> {
    let settings: config::Backend = toml::from_str(settings).unwrap();
    let all = BTreeMap::from([("it".to_owned(), settings)]);
    let registry = Registry::open(&all).unwrap();
    Arc::clone(registry.get("it").unwrap())
}

async fn draw(
    backend: &Arc<dyn Backend>,
    drawing: &Drawing,
) -> (Vec<Vec<u8>>, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let drawn = backend.draw(drawing, &mut collected).await;
    (collected.pictures, drawn)
}

fn drawing(n: u8) -> Drawing {
    Drawing {
        model: "gpt-image-2".into(),
        prompt: "a heron".into(),
        n,
        size: ImageSize {
            width: 64,
            height: 32,
        },
        quality: None,
        references: vec![],
        mask: None,
        options: Map::new(),
    }
}

fn options(options: Value) -> Map<String, Value> {
    match options {
        Value::Object(options) => options,
        other => panic!("no object: {other}"),
    }
}

/// An input that comes in pieces.
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
    }
}
