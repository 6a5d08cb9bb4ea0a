//! Backends: one trait over very different upstreams, and the errors that any of them can return.

pub mod async_job;
mod breaker;
pub mod catalog;
mod choice;
pub mod comfyui;
pub mod demo;
pub mod gemini;
pub mod json_images;
pub mod json_path;
pub mod openai;
mod pace;
pub mod registry;
pub mod sdapi;
mod upstream;
mod whole_input;

pub use breaker::{Breaker, Circuit, Permit};
pub use catalog::Catalog;
pub use choice::{Ask, Pick};
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

/// An adapter to one upstream. It makes a single attempt: its callers decide how many calls a task takes,
/// how long each may last, and what is retried on which route.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The requests that this backend accepts.
    fn capabilities(&self) -> Capabilities;

    /// Whether it uses the client's parameter of this name (`background`, `seed`, …). Parameters that no backend
    /// of a model reads are not stored with the model's tasks.
    fn reads_option(&self, _name: &str) -> bool {
        false
    }

    /// Generates the requested images and passes each to `images`, piece by piece, as it arrives.
    ///
    /// Images finished before an error count as delivered. The future is dropped when its time is up.
    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError>;

    /// Tells the upstream that this job's result is no longer needed.
    async fn cancel(&self, _job: &str) -> Result<(), BackendError> {
        Ok(())
    }

    /// Checks that the upstream is reachable with the configured settings, without generating anything.
    async fn check(&self) -> Result<(), BackendError>;
}

/// The requests that a backend accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The most images that one call may request, 1 or more. A task that wants more takes several
    /// concurrent calls.
    pub n_max: u8,
    /// The most references that one call may have; the API allows at most 16.
    pub references_max: usize,
    /// Whether it accepts a mask.
    pub mask: bool,
}

/// The input of one call to a backend.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The upstream's name for the model.
    pub model: String,
    /// The client's prompt, unchanged.
    pub prompt: String,
    /// The number of images, from 1 to [`Capabilities::n_max`].
    pub n: u8,
    /// The requested aspect ratio.
    pub ratio: AspectRatio,
    /// The requested resolution.
    pub resolution: Resolution,
    /// The size in pixels that follows from the ratio and the resolution.
    pub size: ImageSize,
    /// Set only if the model's settings forward the quality.
    pub quality: Option<Quality>,
    /// The references, in the client's order.
    pub references: Vec<Input>,
    /// The part to regenerate, as transparent pixels.
    pub mask: Option<Input>,
    /// The client's other parameters (`background`, `moderation`, `user`, …), unchanged.
    pub options: Map<String, Value>,
    /// Fields that the operator adds for this model's upstream; they override all others.
    pub extra: Map<String, Value>,
    /// The upstream's job that an earlier worker started for this same call and did not finish.
    pub job: Option<String>,
}

/// An image that a backend reads: type and length are known in advance, the bytes are streamed.
#[derive(Clone)]
pub struct Input {
    /// The image format.
    pub format: Format,
    /// The length in bytes.
    pub length: u64,
    /// Opens the image for reading.
    pub open: OpenInput,
    /// `None`: the image was created in memory and is not stored.
    pub link: Option<MakeLink>,
}

/// Starts reading an input from its first byte.
pub type OpenInput = Arc<
    dyn Fn() -> BoxFuture<'static, std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>>
        + Send
        + Sync,
>;

/// Creates a link to an input that is valid for some minutes, for an upstream that fetches it itself.
pub type MakeLink = Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<String>> + Send + Sync>;

/// Receives a backend's images, one after the other: `write` the pieces of one image, then `finish` it.
#[async_trait]
pub trait ImageSink: Send {
    /// Records the upstream's name for the job before it returns, so that another worker can resume the job.
    /// A backend that submits and polls calls this before the first poll; a backend that chooses the name
    /// itself calls it before it submits.
    async fn accepted(&mut self, job: &str) -> Result<(), SinkError>;
    /// Records the usage that the upstream reports, unchanged.
    fn usage(&mut self, usage: Value);
    /// Adds a piece to the current image. The first piece starts the image.
    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError>;
    /// Discards the current image because it was not requested.
    fn discard(&mut self);
    /// Ends the current image: validates and stores it.
    async fn finish(&mut self) -> Result<(), SinkError>;
}

/// Why the sink failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The bytes are not a valid image.
    #[error("the upstream's answer holds no usable image")]
    NotAnImage(#[source] crate::image::InvalidImage),
    /// Storing the image failed.
    #[error("the image could not be stored")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Recording the job's name failed.
    #[error("the upstream's job could not be recorded")]
    Job(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What went wrong, by what it means for the task. `detail` is for the operator's log only.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Refused by the upstream's safety system; `message` may be shown to the client.
    #[error("refused by the upstream's safety system: {message}")]
    Refused {
        /// The upstream's reason, without keys and addresses.
        message: String,
    },
    /// The upstream does not accept the request; `message` may be shown to the client.
    #[error("the upstream does not accept the request: {message}")]
    Invalid {
        /// The upstream's reason, without keys and addresses.
        message: String,
    },
    /// The upstream rejects the operator's key, or the quota is used up.
    #[error("the upstream does not accept the configured key or its quota is used up: {detail}")]
    Credentials {
        /// The status and the upstream's message.
        detail: String,
    },
    /// Too many requests or too much load at the upstream.
    #[error("the upstream is limiting the rate: {detail}")]
    RateLimited {
        /// The status and the upstream's message.
        detail: String,
        /// How long the upstream asks to wait; `None`: it does not say.
        retry_after: Option<Duration>,
    },
    /// The upstream certainly did not accept the request: a retry cannot buy anything twice.
    #[error("the upstream could not be reached: {detail}")]
    Unreachable {
        /// Why there is no connection, without the URL.
        detail: String,
    },
    /// The upstream reported a failure: this call will deliver nothing more.
    #[error("the upstream failed: {detail}")]
    Failed {
        /// What the upstream reported.
        detail: String,
    },
    /// The upstream may have generated, but its answer did not arrive or could not be read.
    #[error("the outcome at the upstream is unknown: {detail}")]
    OutcomeUnknown {
        /// What went wrong with the answer.
        detail: String,
    },
    /// The upstream answered successfully, but without an image.
    #[error("the upstream answered without an image: {detail}")]
    NoImage {
        /// What the answer contained instead.
        detail: String,
    },
    /// The image sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// An input could not be read.
    #[error("a reference could not be read")]
    Input(#[source] std::io::Error),
}

impl BackendError {
    /// The class that decides about retries, circuits and the client's message.
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
