//! The settings of backends: one type for each kind.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

/// The settings of one backend, by kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Backend {
    /// Abstract images that need no service.
    Demo(DemoBackend),
    /// Any OpenAI-compatible Images API.
    Openai(OpenaiBackend),
    /// A service that runs jobs and is polled.
    AsyncJob(AsyncJobBackend),
    /// The API of AUTOMATIC1111's web UI.
    Sdapi(SdapiBackend),
    /// Workflows on a ComfyUI server.
    Comfyui(ComfyuiBackend),
    /// Google's `generateContent`.
    Gemini(GeminiBackend),
}

/// Settings of the built-in demo backend.
#[derive(Clone, Debug, Deserialize)]
pub struct DemoBackend {
    /// The time that each image takes.
    #[serde(default)]
    pub delay_ms: u64,
    /// How many images in a hundred fail.
    #[serde(default)]
    pub failure_percent: u8,
}

/// Settings of an OpenAI-compatible backend.
#[derive(Clone, Debug, Deserialize)]
pub struct OpenaiBackend {
    /// The dialect.
    #[serde(default)]
    pub profile: OpenaiProfile,
    /// Such as `https://api.openai.com/v1`.
    pub base_url: Url,
    /// Empty if the server needs none.
    pub api_key: SecretString,
    /// Client parameters to forward, in addition to those that every upstream accepts.
    #[serde(default)]
    pub forward: Vec<String>,
    /// Hosts, in addition to that of `base_url`, from which result URLs are downloaded.
    #[serde(default)]
    pub download_hosts: Vec<String>,
    /// Side of the model's training square; 0: images are requested in the client's size.
    #[serde(default)]
    pub native_side_px: u32,
}

/// The API dialect of an OpenAI-compatible server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenaiProfile {
    /// OpenAI itself.
    #[default]
    Openai,
    /// Azure OpenAI.
    Azure,
    /// Any other server.
    Generic,
    /// The server of stable-diffusion.cpp.
    SdServer,
    /// `LocalAI`.
    Localai,
}

/// Settings of an AUTOMATIC1111-compatible backend.
#[derive(Clone, Debug, Deserialize)]
pub struct SdapiBackend {
    /// Such as `http://127.0.0.1:7860`.
    pub base_url: Url,
    /// `user:password`, or empty.
    pub api_key: SecretString,
    /// Side of the model's training square; 0: images are requested in the client's size.
    pub native_side_px: u32,
    /// Sides are multiples of this.
    pub side_step_px: u32,
    /// What to do about a larger requested size.
    pub upscale: Upscale,
    /// Images per call.
    pub batch_max: u8,
}

/// How to make images larger than the model generates them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upscale {
    /// They keep the generated size.
    Off,
    /// With a second pass, the hires fix.
    Hires,
}

/// Settings of a ComfyUI backend.
#[derive(Clone, Debug, Deserialize)]
pub struct ComfyuiBackend {
    /// The URL of ComfyUI's page.
    pub base_url: Url,
    /// Empty if no proxy in front of ComfyUI needs one.
    pub api_key: SecretString,
    /// Files or built-in workflows; empty: such requests are not accepted.
    pub text_workflow: String,
    /// The same for requests with references.
    pub image_workflow: String,
    /// The same for requests with a mask.
    pub mask_workflow: String,
    /// Where a request's values go, such as `prompt=6.text`.
    pub text_bindings: Vec<String>,
    /// The same in the workflow for references.
    pub image_bindings: Vec<String>,
    /// The same in the workflow for masks.
    pub mask_bindings: Vec<String>,
    /// Side of the square that the model generates well at 1k and at 2k; 0: images are generated in the client's size.
    pub native_side_px: u32,
    /// The same at 2k.
    pub native_side_2k_px: u32,
    /// Sides are multiples of this.
    pub side_step_px: u32,
    /// Images per call.
    pub batch_max: u8,
    poll_interval_ms: u64,
}

impl ComfyuiBackend {
    /// The interval between two checks whether an image is ready.
    pub fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }
}

/// Settings of a Gemini backend.
#[derive(Clone, Debug, Deserialize)]
pub struct GeminiBackend {
    /// Such as `https://generativelanguage.googleapis.com/v1beta`.
    pub base_url: Url,
    /// Required.
    pub api_key: SecretString,
    /// Which of `1K` and `2K` the models accept.
    pub image_sizes: Vec<String>,
}

/// Settings of a backend whose upstream runs jobs that are polled.
#[derive(Clone, Debug, Deserialize)]
pub struct AsyncJobBackend {
    /// The name of a built-in protocol description; empty if `protocol_file` is set.
    pub profile: String,
    /// The operator's own protocol description.
    #[serde(deserialize_with = "super::empty_as_none")]
    pub protocol_file: Option<PathBuf>,
    /// `None`: the URL from the description.
    #[serde(deserialize_with = "super::empty_as_none")]
    pub base_url: Option<Url>,
    /// Empty if the protocol needs none.
    pub api_key: SecretString,
    /// Hosts, in addition to those of the description, from which images are downloaded.
    pub download_hosts: Vec<String>,
    poll_interval_ms: u64,
    /// Side of the model's training square; 0: images are requested in the client's size.
    pub native_side_px: u32,
}

impl AsyncJobBackend {
    /// The interval between two polls of a job.
    pub fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }
}
