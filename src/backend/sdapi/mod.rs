//! Servers with the API of AUTOMATIC1111's web UI: the web UI itself, Forge, SD.Next, sd-server.
//!
//! They generate while the connection waits and have no names for jobs. Their interrupt call stops whatever
//! is being generated, even for another client, so this backend never cancels anything.

mod mask;
mod request;

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{
    Backend, BackendError, Capabilities, GenerateRequest, ImageSink,
    json_images::ImagePath,
    upstream::{
        InvalidSetting,
        answer::receive,
        delivery::Delivery,
        endpoint::{Endpoint, Scheme},
        inputs::{self, ReadFault},
        native_size::NativeSize,
    },
};
use crate::config::{SdapiBackend, Upscale};

/// A server with the API of AUTOMATIC1111's web UI.
pub struct Sdapi {
    endpoint: Endpoint,
    native: NativeSize,
    upscale: Upscale,
    batch_max: u8,
    paths: Arc<[ImagePath]>,
    /// Limits mask conversion to one at a time.
    masks: Arc<Semaphore>,
}

/// The answer without its images; [`Delivery`] has counted those by then.
#[derive(Deserialize)]
struct Answer {}

impl Sdapi {
    /// Opens the backend; fails if a setting is invalid.
    pub fn open(settings: &SdapiBackend, client: Client) -> Result<Self, InvalidSetting> {
        let (base_url, key) = (&settings.base_url, &settings.api_key);
        Ok(Self {
            endpoint: Endpoint::open(client, base_url, key, Scheme::Basic)?,
            native: NativeSize {
                side_px: settings.native_side_px,
                step_px: settings.side_step_px,
            },
            upscale: settings.upscale,
            batch_max: settings.batch_max,
            paths: Arc::new([
                ImagePath::of_base64("/images/*"),
                ImagePath::of_echo("/parameters/init_images/*"),
                ImagePath::of_echo("/parameters/mask"),
            ]),
            masks: Arc::new(Semaphore::new(1)),
        })
    }
}

#[async_trait]
impl Backend for Sdapi {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            n_max: self.batch_max,
            // Several references would be used one after the other, not together.
            references_max: 1,
            mask: true,
        }
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let fault = ReadFault::default();
        let builder = self.request(request, &fault).await?;
        let response = inputs::send(builder, &fault).await?;
        let response = self.endpoint.good(response).await?;
        let mut delivery = Delivery::new(images, request.n);
        let Answer {} = receive(response, &self.paths, &mut delivery).await?;
        if delivery.finished() == 0 {
            return Err(BackendError::NoImage {
                detail: "the answer's images field has no image".to_owned(),
            });
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BackendError> {
        let response = self.endpoint.check("sdapi/v1/sd-models").await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(BackendError::Failed {
                detail: "there is no /sdapi/v1/sd-models; start the web UI with --api".to_owned(),
            });
        }
        self.endpoint.good(response).await.map(drop)
    }
}
