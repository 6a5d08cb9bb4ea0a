//! What draws: one trait over very different upstreams, and what can go wrong with any of them.

pub mod demo;
pub mod json_pictures;
pub mod openai;
pub mod registry;

pub use registry::{Registry, RegistryError};

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use serde_json::{Map, Value};

use crate::image::{Format, ImageSize, Quality};

/// An adapter to one upstream.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Draws what is asked for and hands each picture over, piece by piece, as it comes in.
    ///
    /// Pictures finished before an error count as delivered.
    async fn draw(&self, drawing: &Drawing, images: &mut dyn ImageSink)
    -> Result<(), BackendError>;

    /// Whether the upstream can be reached with what is configured, without drawing anything.
    async fn check(&self) -> Result<(), BackendError>;

    /// Whether it takes a mask.
    fn takes_mask(&self) -> bool;
}

/// What a backend is asked to draw: one attempt of a task.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// The upstream's name of the model.
    pub model: String,
    pub prompt: String,
    /// How many pictures, 1 or more.
    pub n: u8,
    pub size: ImageSize,
    /// Only where the model's settings say that it is sent on.
    pub quality: Option<Quality>,
    /// In the order the client gave them.
    pub references: Vec<Input>,
    pub mask: Option<Input>,
    /// The client's other parameters (`background`, `moderation`, `user`, …), as they came.
    pub options: Map<String, Value>,
}

/// An image that a backend reads: its type and length are known, its bytes come as a stream.
#[derive(Clone)]
pub struct Input {
    pub format: Format,
    /// In bytes.
    pub length: u64,
    pub open: OpenInput,
}

/// Starts reading an input from its first byte.
pub type OpenInput = Arc<
    dyn Fn() -> BoxFuture<'static, std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>>
        + Send
        + Sync,
>;

/// Where a backend puts the pictures, one after the other: `write` its pieces, then `finish` it.
#[async_trait]
pub trait ImageSink: Send {
    /// The next piece of the picture under way. The first piece of a picture begins it.
    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError>;
    /// The picture is whole: checks and keeps it.
    async fn finish(&mut self) -> Result<(), SinkError>;
}

/// Why a picture was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("the upstream's answer holds no usable image")]
    NotAnImage(#[source] crate::image::InvalidImage),
    #[error("the image could not be stored")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What went wrong, by what it means for the task. `detail` is for the operator's log only.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Refused by the upstream's safety system; `message` may be shown to the client.
    #[error("refused by the upstream's safety system: {message}")]
    Refused { message: String },
    /// The upstream does not accept the request; `message` may be shown to the client.
    #[error("the upstream does not accept the request: {message}")]
    Invalid { message: String },
    /// The operator's key or quota at the upstream is no good.
    #[error("the upstream does not accept the configured key or its quota is used up: {detail}")]
    Credentials { detail: String },
    /// Too many requests, or too much load, at the upstream.
    #[error("the upstream is limiting its rate: {detail}")]
    RateLimited {
        detail: String,
        retry_after: Option<Duration>,
    },
    /// The upstream certainly did not take the request on: trying again buys nothing twice.
    #[error("the upstream could not be reached: {detail}")]
    Unreachable { detail: String },
    /// It failed, or fell silent, after it may have begun to draw.
    #[error("the upstream failed: {detail}")]
    Failed { detail: String },
    /// It answered well, without a picture.
    #[error("the upstream answered without an image: {detail}")]
    NoImage { detail: String },
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// An input could not be read.
    #[error("a reference could not be read")]
    Input(#[source] std::io::Error),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("format", &self.format)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
