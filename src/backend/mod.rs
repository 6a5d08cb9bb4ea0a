//! What generates: one trait over very different upstreams, and what can go wrong with any of them.

pub mod async_job;
mod breaker;
pub mod catalog;
mod choice;
pub mod comfyui;
pub mod demo;
pub mod gemini;
pub mod json_images;
pub mod openai;
mod pace;
pub mod registry;
pub mod sdapi;
mod upstream;
mod whole_input;

pub use breaker::{Breaker, Circuit, Permit};
pub use catalog::Catalog;
pub use pace::SETTLE_TIME;
pub use registry::{Registry, RegistryError};

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use serde_json::{Map, Value};

use crate::{
    failure::Class,
    image::{AspectRatio, Format, ImageSize, Quality, Resolution},
};

/// An adapter to one upstream. It does one thing once: how many calls a task takes, how long each may
/// last, what is tried again and where, is decided above it.
#[async_trait]
pub trait Backend: Send + Sync {
    /// What may be asked of it.
    fn capabilities(&self) -> Capabilities;

    /// Whether it makes something of the client's parameter of this name (`background`, `seed`, …). Those
    /// that no backend of a model reads are not kept with its tasks.
    fn reads_option(&self, _name: &str) -> bool {
        false
    }

    /// Generates what is asked for and hands each image over, piece by piece, as it comes in.
    ///
    /// Images finished before an error count as delivered. Dropped when time is up.
    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError>;

    /// Tells the upstream that nobody waits for this job of its any more.
    async fn cancel(&self, _job: &str) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether the upstream can be reached with what is configured, without request anything.
    async fn check(&self) -> Result<(), BackendError>;
}

/// What may be asked of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How many images one call may ask for, 1 or more. For more than that it is called several
    /// times at once.
    pub n_max: u8,
    /// How many references it takes; the API knows no more than 16.
    pub references_max: usize,
    pub mask: bool,
}

/// What a backend is asked to generate in one call.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The upstream's name of the model.
    pub model: String,
    pub prompt: String,
    /// How many images, from 1 to what the backend can do in one call.
    pub n: u8,
    pub ratio: AspectRatio,
    pub resolution: Resolution,
    /// In pixels, as the ratio and the resolution say.
    pub size: ImageSize,
    /// Only where the model's settings say that it is sent on.
    pub quality: Option<Quality>,
    /// In the order the client gave them.
    pub references: Vec<Input>,
    pub mask: Option<Input>,
    /// The client's other parameters (`background`, `moderation`, `user`, …), as they came.
    pub options: Map<String, Value>,
    /// Fields that the operator has sent to this model's upstream, over all others.
    pub extra: Map<String, Value>,
    /// The upstream's job that an earlier worker began for this very call and did not see the end of.
    pub job: Option<String>,
}

/// An image that a backend reads: its type and length are known, its bytes come as a stream.
#[derive(Clone)]
pub struct Input {
    pub format: Format,
    /// In bytes.
    pub length: u64,
    pub open: OpenInput,
    /// `None`: it is made up, and stored nowhere.
    pub link: Option<MakeLink>,
}

/// Starts reading an input from its first byte.
pub type OpenInput = Arc<
    dyn Fn() -> BoxFuture<'static, std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>>
        + Send
        + Sync,
>;

/// Makes a link to an input that is good for some minutes, for an upstream that fetches it itself.
pub type MakeLink = Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<String>> + Send + Sync>;

/// Where a backend puts what its upstream gives. The images come one after the other: `write` its
/// pieces, then `finish` it.
#[async_trait]
pub trait ImageSink: Send {
    /// The upstream's name for the job, kept before this returns, so that another worker can go on with
    /// it. A backend that submits and polls says it before the first poll; one that makes the names
    /// itself, before it submits.
    async fn accepted(&mut self, job: &str) -> Result<(), SinkError>;
    /// What the upstream says that the work has taken, as it says it.
    fn usage(&mut self, usage: Value);
    /// The next piece of the image under way. The first piece of an image begins it.
    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError>;
    /// The image under way is not one that was asked for: forgets it.
    fn discard(&mut self);
    /// The image is whole: checks and keeps it.
    async fn finish(&mut self) -> Result<(), SinkError>;
}

/// Why an image was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("the upstream's answer holds no usable image")]
    NotAnImage(#[source] crate::image::InvalidImage),
    #[error("the image could not be stored")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the upstream's job could not be noted")]
    Job(#[source] Box<dyn std::error::Error + Send + Sync>),
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
    /// It says that it has failed: nothing of this call will come any more.
    #[error("the upstream failed: {detail}")]
    Failed { detail: String },
    /// It fell silent after it may have begun to generate, and may have generated.
    #[error("the upstream fell silent: {detail}")]
    OutcomeUnknown { detail: String },
    /// It answered well, without an image.
    #[error("the upstream answered without an image: {detail}")]
    NoImage { detail: String },
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// An input could not be read.
    #[error("a reference could not be read")]
    Input(#[source] std::io::Error),
}

impl BackendError {
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { .. } => Class::Refused,
            Self::Invalid { .. } => Class::Invalid,
            Self::Credentials { .. } => Class::Credentials,
            Self::RateLimited { .. } => Class::RateLimited,
            Self::Unreachable { .. } => Class::Unreachable,
            Self::Failed { .. } => Class::Failed,
            Self::OutcomeUnknown { .. } => Class::OutcomeUnknown,
            Self::NoImage { .. } | Self::Sink(SinkError::NotAnImage(_)) => Class::NoImage,
            Self::Sink(SinkError::Storage(_) | SinkError::Job(_)) | Self::Input(_) => {
                Class::Internal
            }
        }
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("format", &self.format)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
