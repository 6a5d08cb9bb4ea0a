//! Any upstream that takes a request on, names a job and is asked for it until it has ended. How it is
//! spoken to is a description: those of well-known upstreams are built in, others are files.

mod failure;
mod pointer;
mod poll;
mod profiles;
mod protocol;
mod submit;
mod template;
mod ticket;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use url::Url;

use super::{
    Abilities, Backend, BackendError, Drawing, ImageSink,
    json_pictures::Place,
    upstream::{
        InvalidSetting,
        delivery::Delivery,
        download::{self, DownloadRule},
        endpoint::{Endpoint, Scheme},
        error,
        native_size::NativeSize,
    },
};
use crate::config::PolledBackend;
use failure::passes;
use poll::Waits;
use protocol::{Auth, Outcome, Protocol};
use ticket::Ticket;

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);
/// From the first byte of a submit, or of an upload, to the last one of the answer.
const SUBMIT_TIMEOUT: Duration = Duration::from_mins(3);
/// The same for a look at a job; some answer it with the pictures themselves.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// What both sides must be a multiple of where the model's own size is asked for.
const NATIVE_STEP_PX: u32 = 64;
/// What came of a job that is done, and each of its pictures, is asked for so often.
const RESULT_TRIES_MAX: u32 = 6;
/// Between two looks while the upstream is away.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// An upstream that is submitted to and polled.
pub struct Polled {
    endpoint: Endpoint,
    protocol: Protocol,
    interval: Duration,
    native: NativeSize,
    /// Where the key may go.
    key_hosts: DownloadRule,
    downloads: DownloadRule,
    /// Where answers hold pictures themselves.
    pictures: Arc<[Place]>,
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error("profile must be one of: {known}; or protocol_file must be set, and not both")]
    Profile { known: String },
    #[error("protocol_file {} cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the protocol is not sound: {fault}")]
    Protocol { fault: String },
    #[error("base_url must be set, the protocol has none")]
    BaseUrl,
    #[error("api_key is missing, set it or api_key_file")]
    ApiKey,
}

impl Polled {
    pub fn open(settings: &PolledBackend, client: Client) -> Result<Self, OpenError> {
        let protocol = Protocol::parse(&description(settings)?)
            .map_err(|fault| OpenError::Protocol { fault })?;
        let base_url = settings.base_url.as_ref().or(protocol.base_url.as_ref());
        let base_url: &Url = base_url.ok_or(OpenError::BaseUrl)?;
        let key = &settings.api_key;
        let no_key = secrecy::SecretString::default();
        let (scheme, key) = match &protocol.auth {
            Auth::None => (Scheme::Authorization(""), &no_key),
            _ if key.expose_secret().trim().is_empty() => return Err(OpenError::ApiKey),
            Auth::Scheme(word) => (Scheme::Authorization(word), key),
            Auth::Header(name) => (Scheme::Header(name), key),
        };
        let endpoint = Endpoint::open(client, base_url, key, scheme)?;
        let hosts = [&protocol.download_hosts[..], &settings.download_hosts[..]].concat();
        let base64 = protocol.result.base64.scanned();
        let data_urls = protocol.result.urls.scanned();
        let pictures = base64
            .map(|path| Place::of_base64(&path))
            .chain(data_urls.map(|path| Place::of_data_urls(&path)))
            .collect();
        Ok(Self {
            key_hosts: DownloadRule::new(base_url, &protocol.key_hosts),
            downloads: DownloadRule::new(base_url, &hosts),
            interval: settings.poll_interval(),
            native: NativeSize {
                side_px: settings.native_side_px,
                step_px: NATIVE_STEP_PX,
            },
            pictures,
            endpoint,
            protocol,
        })
    }

    /// The job's names once the upstream has taken it on: it has, where a worker before has seen to it.
    async fn ticket(
        &self,
        drawing: &Drawing,
        waits: &mut Waits,
        images: &mut dyn ImageSink,
    ) -> Result<Ticket, BackendError> {
        let submit = self.protocol.submit(!drawing.references.is_empty());
        let repeatable = submit.repeat_header.is_some();
        let Some(job) = &drawing.job else {
            let mut ticket = Ticket::new(repeatable);
            self.submit(drawing, &mut ticket, images).await?;
            waits.answered().await;
            return Ok(ticket);
        };
        let mut ticket = Ticket::parse(job, repeatable);
        while ticket.name.is_none() {
            // It was begun, or not: to repeat it buys nothing twice, and the upstream may be away.
            match self.submit(drawing, &mut ticket, images).await {
                Err(error) if passes(&error) => waits.failed(&error).await,
                submitted => submitted?,
            }
        }
        Ok(ticket)
    }

    /// The picture is paid for: while nothing of it has come in, it is asked for again.
    async fn fetch(
        &self,
        url: &str,
        waits: &mut Waits,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), BackendError> {
        let client = &self.endpoint.client;
        for _ in 1..RESULT_TRIES_MAX {
            match download::fetch(client, &self.downloads, url, delivery).await {
                Err(error) if passes(&error) && !delivery.is_within() => waits.failed(&error).await,
                fetched => return fetched,
            }
        }
        download::fetch(client, &self.downloads, url, delivery).await
    }

    async fn failure(&self, response: Response) -> BackendError {
        let told = error::tell(response, self.endpoint.secret()).await;
        self.protocol.errors.of_status(told)
    }
}

#[async_trait]
impl Backend for Polled {
    fn abilities(&self) -> Abilities {
        let references = self.protocol.references.as_ref();
        Abilities {
            n_max: self.protocol.n_max,
            references_max: references.map_or(0, |references| references.count_max),
            mask: references.is_some() && self.protocol.takes_mask(),
        }
    }

    fn reads_option(&self, name: &str) -> bool {
        self.protocol.reads_option(name)
    }

    async fn draw(
        &self,
        drawing: &Drawing,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let mut waits = Waits::new(self.interval);
        let ticket = self.ticket(drawing, &mut waits, images).await?;
        let name = ticket.name.unwrap_or_default();
        let mut delivery = Delivery::new(images, drawing.n);
        let outcome = self.outcome(&name, &mut waits, &mut delivery).await?;
        delivery.usage(usage(&self.protocol.result, &outcome));
        for url in self.protocol.result.urls.texts(&outcome) {
            if delivery.is_done() {
                break;
            }
            self.fetch(url, &mut waits, &mut delivery).await?;
        }
        if delivery.finished() == 0 {
            return Err(BackendError::NoImage {
                detail: "the job is done, and there is no picture".to_owned(),
            });
        }
        Ok(())
    }

    async fn cancel(&self, job: &str) -> Result<(), BackendError> {
        let ticket = Ticket::parse(job, self.protocol.submit.repeat_header.is_some());
        let (Some(cancel), Some(name)) = (&self.protocol.cancel, ticket.name) else {
            return Ok(());
        };
        let url = ticket::url(&self.endpoint, &self.key_hosts, &cancel.path, &name)
            .map_err(|detail| BackendError::Failed { detail })?;
        let request = self.endpoint.request_to(cancel.method(), url);
        let sent = request.timeout(CHECK_TIMEOUT).send().await;
        let response = sent.map_err(error::transport)?;
        match response.status() {
            // It is over, or has gone too far: nobody waits for it all the same.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::GONE => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.failure(response).await),
        }
    }

    async fn check(&self) -> Result<(), BackendError> {
        let request = self.endpoint.get(&self.protocol.check);
        let sent = request.timeout(CHECK_TIMEOUT).send().await;
        let response = sent.map_err(error::not_reached)?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.failure(response).await),
            // Any other answer says that somebody is there.
            _ => Ok(()),
        }
    }
}

/// The text of the protocol that the settings name.
fn description(settings: &PolledBackend) -> Result<String, OpenError> {
    let unknown = || OpenError::Profile {
        known: profiles::names().collect::<Vec<_>>().join(", "),
    };
    match (&settings.protocol_file, settings.profile.as_str()) {
        (None, name) => profiles::get(name).map(str::to_owned).ok_or_else(unknown),
        (Some(path), "") => std::fs::read_to_string(path).map_err(|source| OpenError::Unreadable {
            path: path.clone(),
            source,
        }),
        (Some(_), _) => Err(unknown()),
    }
}

/// What the upstream says that the work has taken.
fn usage(result: &Outcome, outcome: &Value) -> Option<Value> {
    let places = result.usage.iter();
    let found =
        places.filter_map(|(name, place)| Some((name.clone(), place.find(outcome)?.clone())));
    let found: Map<String, Value> = found.collect();
    (!found.is_empty()).then_some(Value::Object(found))
}
