//! Any upstream that accepts a request, names a job and is polled until the job ends. A description defines
//! its protocol: those of well-known upstreams are built in, others are files.

mod failure;
mod handle;
mod poll;
mod profiles;
mod protocol;
mod submit;
mod template;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use url::Url;

use super::{
    Backend, BackendError, Capabilities, GenerateRequest, ImageSink,
    json_images::ImagePath,
    upstream::{
        InvalidSetting,
        delivery::Delivery,
        download::{self, DownloadRule},
        endpoint::{Endpoint, Scheme},
        error,
        native_size::NativeSize,
    },
};
use crate::config::AsyncJobBackend;
use failure::passes;
use handle::JobHandle;
use poll::Waits;
use protocol::{Auth, Outcome, Protocol};

const CANCEL_TIMEOUT: Duration = Duration::from_secs(15);
/// From the first byte of a submit or an upload to the last byte of the answer.
const SUBMIT_TIMEOUT: Duration = Duration::from_mins(3);
/// The same for a poll; some upstreams answer it with the images themselves.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// Both sides must be a multiple of this if the model's native size is requested.
const NATIVE_STEP_PX: u32 = 64;
/// The attempts to fetch the result of a finished job, and each of its images.
const RESULT_TRIES_MAX: u32 = 6;
/// The longest wait between two polls while the upstream is unreachable.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A backend that submits a job to its upstream and polls it.
pub struct AsyncJob {
    endpoint: Endpoint,
    protocol: Protocol,
    interval: Duration,
    native: NativeSize,
    /// The URLs to which the key may be sent.
    key_hosts: DownloadRule,
    downloads: DownloadRule,
    /// The locations of images inside answers.
    images: Arc<[ImagePath]>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address or the key is invalid.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The profile is unknown, or it and a file are both set.
    #[error("profile must be one of: {known}; or set protocol_file, but not both")]
    Profile {
        /// The names of all profiles, separated by commas.
        known: String,
    },
    /// The file cannot be read.
    #[error("protocol_file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file, as set.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The description is invalid.
    #[error("the protocol is invalid: {fault}")]
    Protocol {
        /// What is wrong with it.
        fault: String,
    },
    /// Neither the settings nor the description have an address.
    #[error("base_url must be set: the protocol has no default")]
    BaseUrl,
    /// The protocol needs a key.
    #[error("api_key is missing, set it or api_key_file")]
    ApiKey,
}

impl AsyncJob {
    /// Opens the backend; fails if a setting or the description is invalid.
    pub fn open(settings: &AsyncJobBackend, client: Client) -> Result<Self, OpenError> {
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
        let base64 = protocol.result.base64.0.iter().cloned();
        let data_urls = protocol.result.urls.0.iter().cloned();
        let images = base64
            .map(ImagePath::of_base64)
            .chain(data_urls.map(ImagePath::of_data_urls))
            .collect();
        Ok(Self {
            key_hosts: DownloadRule::new(base_url, &protocol.key_hosts),
            downloads: DownloadRule::new(base_url, &hosts),
            interval: settings.poll_interval(),
            native: NativeSize {
                side_px: settings.native_side_px,
                step_px: NATIVE_STEP_PX,
            },
            images,
            endpoint,
            protocol,
        })
    }

    /// Submits the request, unless an earlier worker did, and returns the upstream's name for the job.
    async fn job(
        &self,
        request: &GenerateRequest,
        waits: &mut Waits,
        images: &mut dyn ImageSink,
    ) -> Result<String, BackendError> {
        let submit = self.protocol.submit(!request.references.is_empty());
        let repeatable = submit.repeat_header.is_some();
        let Some(job) = &request.job else {
            let mut handle = JobHandle::new(repeatable);
            let name = self.submit(request, &mut handle, images).await?;
            waits.answered().await;
            return Ok(name);
        };
        let mut handle = JobHandle::parse(job, repeatable);
        loop {
            if let Some(name) = handle.name.take() {
                return Ok(name);
            }
            // An earlier worker may have submitted it. Repeating buys nothing twice, and the upstream may be away.
            match self.submit(request, &mut handle, images).await {
                Err(error) if passes(&error) => waits.failed(&error).await,
                submitted => return submitted,
            }
        }
    }

    /// Fetches an image. It is paid for, so the fetch is retried as long as no byte of it has arrived.
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
        let answer = error::read_error(response, self.endpoint.secret()).await;
        self.protocol.errors.of_status(answer)
    }
}

#[async_trait]
impl Backend for AsyncJob {
    fn capabilities(&self) -> Capabilities {
        let references = self.protocol.references.as_ref();
        Capabilities {
            n_max: self.protocol.n_max,
            references_max: references.map_or(0, |references| references.count_max),
            mask: references.is_some() && self.protocol.takes_mask(),
        }
    }

    fn reads_option(&self, name: &str) -> bool {
        self.protocol.reads_option(name)
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let mut waits = Waits::new(self.interval);
        let name = self.job(request, &mut waits, images).await?;
        let mut delivery = Delivery::new(images, request.n);
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
                detail: "the job is done but has no image".to_owned(),
            });
        }
        Ok(())
    }

    async fn cancel(&self, job: &str) -> Result<(), BackendError> {
        let handle = JobHandle::parse(job, self.protocol.submit.repeat_header.is_some());
        let (Some(cancel), Some(name)) = (&self.protocol.cancel, handle.name) else {
            return Ok(());
        };
        let url = handle::url(&self.endpoint, &self.key_hosts, &cancel.path, &name)
            .map_err(|detail| BackendError::Failed { detail })?;
        let builder = self.endpoint.request_to(cancel.method(), url);
        let sent = builder.timeout(CANCEL_TIMEOUT).send().await;
        let response = sent.map_err(error::transport)?;
        match response.status() {
            // The job has ended or cannot be stopped any more. Either way, nothing is left to do.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::GONE => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.failure(response).await),
        }
    }

    async fn check(&self) -> Result<(), BackendError> {
        let response = self.endpoint.check(&self.protocol.check).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.failure(response).await),
            // Any other answer shows that the upstream is reachable.
            _ => Ok(()),
        }
    }
}

/// The text of the configured description.
fn description(settings: &AsyncJobBackend) -> Result<String, OpenError> {
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

/// The usage that the upstream reports.
fn usage(result: &Outcome, outcome: &Value) -> Option<Value> {
    let paths = result.usage.iter();
    let found = paths.filter_map(|(name, path)| Some((name.clone(), path.find(outcome)?.clone())));
    let found: Map<String, Value> = found.collect();
    (!found.is_empty()).then_some(Value::Object(found))
}
