//! Any upstream with OpenAI's Images API: a generation where there are no references, else an edit.

mod answer;
mod request;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, StatusCode, header::ACCEPT};

use super::{
    Abilities, Backend, BackendError, Drawing, ImageSink,
    json_pictures::Place,
    upstream::{
        InvalidSetting,
        answer::receive,
        delivery::Delivery,
        download::{self, DownloadRule},
        endpoint::{Endpoint, Scheme},
        error,
        inputs::{self, ReadFault},
    },
};
use crate::config::OpenaiBackend;
use answer::Answer;

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// An upstream with OpenAI's Images API.
pub struct Openai {
    endpoint: Endpoint,
    forward: Vec<String>,
    downloads: DownloadRule,
    places: Arc<[Place]>,
}

impl Openai {
    pub fn open(settings: &OpenaiBackend, client: Client) -> Result<Self, InvalidSetting> {
        let (base_url, key) = (&settings.base_url, &settings.api_key);
        Ok(Self {
            endpoint: Endpoint::open(client, base_url, key, Scheme::Authorization("Bearer"))?,
            forward: settings.forward.clone(),
            downloads: DownloadRule::new(base_url, &settings.download_hosts),
            places: answer::places(),
        })
    }
}

#[async_trait]
impl Backend for Openai {
    fn abilities(&self) -> Abilities {
        Abilities {
            n_max: 10,
            references_max: 16,
            mask: true,
        }
    }

    async fn draw(
        &self,
        drawing: &Drawing,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let fault = ReadFault::default();
        let request = if drawing.references.is_empty() {
            let body = request::generation(drawing, &self.forward);
            self.endpoint.post("images/generations").json(&body)
        } else {
            let form = request::edit(drawing, &self.forward, &fault)?;
            self.endpoint.post("images/edits").multipart(form)
        };
        let request = request.header(ACCEPT, "application/json");
        let response = inputs::send(request, &fault).await?;
        if !response.status().is_success() {
            return Err(error::read(response, self.endpoint.secret()).await);
        }
        let mut delivery = Delivery::new(images, drawing.n);
        let mut answer: Answer = receive(response, &self.places, &mut delivery).await?;
        delivery.usage(answer.usage.take());
        for url in answer.urls() {
            if delivery.is_done() {
                break;
            }
            let picture = self.downloads.allow(url)?;
            download::fetch(&self.endpoint.client, picture, &mut delivery).await?;
        }
        if delivery.finished() == 0 {
            return Err(answer.without_image(self.endpoint.secret()));
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BackendError> {
        let sent = self.endpoint.get("models").timeout(CHECK_TIMEOUT).send();
        let response = sent.await.map_err(error::not_reached)?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(error::read(response, self.endpoint.secret()).await)
            }
            // Many upstreams list no models: any other answer says that somebody is there.
            _ => Ok(()),
        }
    }
}
