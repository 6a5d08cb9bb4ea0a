//! Google's Gemini models that generate images, by `generateContent`: one image per call, references inside
//! the request, refusals as successful answers.

mod answer;
mod request;

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::{Client, header::ACCEPT};

use super::{
    Backend, BackendError, Capabilities, GenerateRequest, ImageSink,
    json_images::ImagePath,
    upstream::{
        InvalidSetting,
        delivery::Delivery,
        endpoint::{Endpoint, Scheme},
        inputs::{self, JsonBody, ReadFault},
    },
};
use crate::config::GeminiBackend;

const REFERENCES_MAX: usize = 14;

/// A backend for Gemini's API.
pub struct Gemini {
    endpoint: Endpoint,
    sizes: Vec<String>,
    paths: Arc<[ImagePath]>,
}

impl Gemini {
    /// Opens the backend; fails if a setting is invalid.
    pub fn open(settings: &GeminiBackend, client: Client) -> Result<Self, InvalidSetting> {
        let (url, key) = (&settings.base_url, &settings.api_key);
        Ok(Self {
            endpoint: Endpoint::open(client, url, key, Scheme::Header("x-goog-api-key"))?,
            sizes: settings.image_sizes.clone(),
            paths: answer::paths(),
        })
    }
}

#[async_trait]
impl Backend for Gemini {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            n_max: 1,
            references_max: REFERENCES_MAX,
            mask: false,
        }
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let fault = ReadFault::default();
        let mut body = JsonBody::new(&fault);
        let content = request::content(request, &self.sizes, &mut body)?;
        let path = format!("models/{}:generateContent", request.model);
        let builder = self.endpoint.post(&path).header(ACCEPT, "application/json");
        let response = inputs::send(body.on(builder, &content), &fault).await?;
        let response = self.endpoint.good(response).await?;
        let mut delivery = Delivery::new(images, request.n);
        let mut answer = answer::receive(response, &self.paths, &mut delivery).await?;
        delivery.usage(answer.usage());
        if delivery.finished() == 0 {
            return Err(answer.without_image(self.endpoint.secret()));
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BackendError> {
        let response = self.endpoint.check("models").await?;
        match self.endpoint.good(response).await {
            Err(error @ BackendError::Credentials { .. }) => Err(error),
            // Other servers with this API list no models: any answer shows that the upstream is reachable.
            _ => Ok(()),
        }
    }
}
