//! Any upstream with OpenAI's Images API: a generation where there are no references, else an edit.

mod answer;
mod delivery;
mod download;
mod error;
mod message;
mod request;

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{
    Client, RequestBuilder, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{Backend, BackendError, Drawing, ImageSink};
use crate::config::OpenaiBackend;
use delivery::Delivery;
use download::DownloadRule;
use request::ReadFault;

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// An upstream with OpenAI's Images API.
pub struct Openai {
    client: Client,
    base_url: Url,
    api_key: SecretString,
    /// `None`: an upstream without keys.
    authorization: Option<HeaderValue>,
    forward: Vec<String>,
    downloads: DownloadRule,
    timeout: Duration,
}

/// Why settings can't be used.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum InvalidSetting {
    #[error("base_url must start with https:// or http://")]
    BaseUrl,
    #[error("api_key may hold no line ends or other control characters")]
    ApiKey,
}

impl Openai {
    pub fn open(settings: &OpenaiBackend, client: Client) -> Result<Self, InvalidSetting> {
        let base_url = settings.base_url.clone();
        if !matches!(base_url.scheme(), "https" | "http") {
            return Err(InvalidSetting::BaseUrl);
        }
        Ok(Self {
            client,
            authorization: authorization(settings.api_key.expose_secret())?,
            api_key: settings.api_key.clone(),
            forward: settings.forward.clone(),
            downloads: DownloadRule::new(&base_url, &settings.download_hosts),
            timeout: settings.timeout(),
            base_url,
        })
    }

    async fn draw_untimed(
        &self,
        drawing: &Drawing,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let fault = ReadFault::default();
        let request = if drawing.references.is_empty() {
            let body = request::generation(drawing, &self.forward);
            self.authorized(self.client.post(self.url("images/generations")))
                .json(&body)
        } else {
            let form = request::edit(drawing, &self.forward, &fault)?;
            self.authorized(self.client.post(self.url("images/edits")))
                .multipart(form)
        };
        let sent = request.header(ACCEPT, "application/json").send().await;
        if let Some(source) = fault.take() {
            return Err(BackendError::Input(source));
        }
        let response = sent.map_err(error::transport)?;
        if !response.status().is_success() {
            return Err(error::read(response, self.api_key.expose_secret()).await);
        }
        let mut delivery = Delivery::new(images, drawing.n);
        let answer = answer::receive(response, &mut delivery).await?;
        for url in answer.urls() {
            if delivery.is_done() {
                break;
            }
            let picture = self.downloads.allow(url)?;
            download::fetch(&self.client, picture, &mut delivery).await?;
        }
        if delivery.finished() == 0 {
            return Err(answer.without_image(self.api_key.expose_secret()));
        }
        Ok(())
    }

    /// `base_url` with `path` at the end of its path; a query (`api-version=…`) stays.
    fn url(&self, path: &str) -> Url {
        let mut url = self.base_url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        url
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }
}

#[async_trait]
impl Backend for Openai {
    async fn draw(
        &self,
        drawing: &Drawing,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        match tokio::time::timeout(self.timeout, self.draw_untimed(drawing, images)).await {
            Ok(drawn) => drawn,
            Err(_) => Err(BackendError::Failed {
                detail: format!("no whole answer within {} ms", self.timeout.as_millis()),
            }),
        }
    }

    async fn check(&self) -> Result<(), BackendError> {
        let request = self.authorized(self.client.get(self.url("models")));
        let response = request
            .timeout(CHECK_TIMEOUT)
            .send()
            .await
            .map_err(error::not_reached)?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(error::read(response, self.api_key.expose_secret()).await)
            }
            // Many upstreams list no models: any other answer says that somebody is there.
            _ => Ok(()),
        }
    }

    fn takes_mask(&self) -> bool {
        true
    }
}

fn authorization(api_key: &str) -> Result<Option<HeaderValue>, InvalidSetting> {
    if api_key.is_empty() {
        return Ok(None);
    }
    let value = HeaderValue::try_from(format!("Bearer {api_key}"));
    let mut value = value.or(Err(InvalidSetting::ApiKey))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
