//! Any upstream with OpenAI's Images API: a generation if there are no references, else an edit.

mod answer;
mod profile;
mod request;

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::{Client, StatusCode};

use super::{
    Backend, BackendError, Capabilities, GenerateRequest, ImageSink,
    json_images::ImagePath,
    upstream::{
        InvalidSetting,
        answer::receive,
        delivery::Delivery,
        download::{self, DownloadRule},
        endpoint::Endpoint,
        error,
        inputs::{self, ReadFault},
        native_size::NativeSize,
    },
};
use crate::config::OpenaiBackend;
use answer::Answer;
use profile::Profile;

/// Both sides must be a multiple of this for models that run locally.
const SIDE_STEP_PX: u32 = 64;

/// A backend for an upstream with OpenAI's Images API.
pub struct Openai {
    endpoint: Endpoint,
    profile: Profile,
    /// Whether the model is part of the path: Azure's older form, in which the address has a version.
    in_deployments: bool,
    native: NativeSize,
    forward: Vec<String>,
    downloads: DownloadRule,
    paths: Arc<[ImagePath]>,
}

impl Openai {
    /// Opens the backend; fails if a setting is invalid.
    pub fn open(settings: &OpenaiBackend, client: Client) -> Result<Self, InvalidSetting> {
        let (base_url, key) = (&settings.base_url, &settings.api_key);
        let profile = Profile::of(settings.profile);
        Ok(Self {
            endpoint: Endpoint::open(client, base_url, key, profile.key)?,
            profile,
            in_deployments: base_url.query().is_some(),
            native: NativeSize {
                side_px: settings.native_side_px,
                step_px: SIDE_STEP_PX,
            },
            forward: settings.forward.clone(),
            downloads: DownloadRule::new(base_url, &settings.download_hosts),
            paths: answer::paths(),
        })
    }
}

#[async_trait]
impl Backend for Openai {
    fn capabilities(&self) -> Capabilities {
        self.profile.capabilities
    }

    fn reads_option(&self, name: &str) -> bool {
        self.forwards().any(|forwarded| forwarded == name)
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let fault = ReadFault::default();
        let builder = self.request(request, &fault)?;
        let response = inputs::send(builder, &fault).await?;
        let response = self.endpoint.good(response).await?;
        let mut delivery = Delivery::new(images, request.n);
        let mut answer: Answer = receive(response, &self.paths, &mut delivery).await?;
        delivery.usage(answer.usage.take());
        for url in answer.urls() {
            if delivery.is_done() {
                break;
            }
            download::fetch(&self.endpoint.client, &self.downloads, url, &mut delivery).await?;
        }
        if delivery.finished() == 0 {
            return Err(answer.without_image(self.endpoint.secret()));
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BackendError> {
        let path = if self.in_deployments {
            "openai/models"
        } else {
            "models"
        };
        let response = self.endpoint.check(path).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(error::read(response, self.endpoint.secret()).await)
            }
            // Many upstreams list no models: any other answer shows that the upstream is reachable.
            _ => Ok(()),
        }
    }
}
