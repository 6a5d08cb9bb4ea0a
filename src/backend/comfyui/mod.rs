//! ComfyUI: fills the request's values into the bindings of the operator's workflow, submits it, polls it and
//! fetches its images.
//!
//! We choose the prompt's id and record it before the submit. A worker that resumes the task looks the id up
//! in ComfyUI's history and queue, and submits the prompt only if it is in neither.

mod api;
mod binding;
mod history;
mod queue;
mod workflow;

use std::time::Duration;

use async_trait::async_trait;
use reqwest::Client;
use uuid::Uuid;

use super::{
    Backend, BackendError, Capabilities, GenerateRequest, ImageSink,
    upstream::{
        InvalidSetting,
        delivery::Delivery,
        download,
        endpoint::{Endpoint, Scheme},
        native_size::NativeSize,
    },
};
use crate::{clock::jittered, config::ComfyuiBackend, ids, image::Resolution};
use api::{Api, Stage};
use binding::Role;
use history::Ended;
use workflow::{Source, Values, Workflow};

pub use workflow::WorkflowError;

/// After this many polls the queue is read too, because a restarted ComfyUI has forgotten its queue.
const POLLS_PER_LOOK: u32 = 10;
/// How many polls in a row may fail.
const POLL_FAILURES_MAX: u32 = 5;
/// The client's parameter that describes what the image must not show.
/// The most characters of it; as many as a prompt may have.
const NEGATIVE_PROMPT: &str = "negative_prompt";
const NEGATIVE_CHARS_MAX: usize = 32_000;

/// A backend for a ComfyUI server.
pub struct Comfyui {
    api: Api,
    text: Option<Workflow>,
    images: Option<Workflow>,
    mask: Option<Workflow>,
    native: NativeSize,
    native_2k: NativeSize,
    batch_max: u8,
    poll_interval: Duration,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address or the key is invalid.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// A workflow or its bindings are invalid.
    #[error(transparent)]
    Workflow(#[from] WorkflowError),
}

impl Comfyui {
    /// Opens the backend; fails if a setting or a workflow is invalid.
    pub fn open(settings: &ComfyuiBackend, client: Client) -> Result<Self, OpenError> {
        let (url, key) = (&settings.base_url, &settings.api_key);
        let endpoint = Endpoint::open(client, url, key, Scheme::Authorization("Bearer"))?;
        let (text, images, mask) = (
            Workflow::open(
                Source::Text,
                &settings.text_workflow,
                &settings.text_bindings,
            )?,
            Workflow::open(
                Source::Images,
                &settings.image_workflow,
                &settings.image_bindings,
            )?,
            Workflow::open(
                Source::Mask,
                &settings.mask_workflow,
                &settings.mask_bindings,
            )?,
        );
        let native = |side_px| NativeSize {
            side_px,
            step_px: settings.side_step_px,
        };
        Ok(Self {
            api: Api { endpoint },
            text,
            images,
            mask,
            native: native(settings.native_side_px),
            native_2k: native(settings.native_side_2k_px),
            batch_max: settings.batch_max,
            poll_interval: settings.poll_interval(),
        })
    }

    fn workflows(&self) -> impl Iterator<Item = &Workflow> {
        [&self.text, &self.images, &self.mask].into_iter().flatten()
    }

    fn workflow(&self, request: &GenerateRequest) -> Result<&Workflow, BackendError> {
        let (found, lacking) = if request.mask.is_some() {
            (&self.mask, "takes no mask")
        } else if request.references.is_empty() {
            (&self.text, "generates only from a reference image")
        } else {
            (&self.images, "takes no reference images without a mask")
        };
        found.as_ref().ok_or_else(|| BackendError::Invalid {
            message: format!("this model {lacking}"),
        })
    }

    async fn submit(
        &self,
        request: &GenerateRequest,
        workflow: &Workflow,
        id: Uuid,
        images: &mut dyn ImageSink,
    ) -> Result<Uuid, BackendError> {
        let negative = request.options.get(NEGATIVE_PROMPT);
        let negative = negative.and_then(serde_json::Value::as_str);
        if negative.is_some_and(|text| text.chars().count() > NEGATIVE_CHARS_MAX) {
            let message =
                format!("negative_prompt must be at most {NEGATIVE_CHARS_MAX} characters");
            return Err(BackendError::Invalid { message });
        }
        let mut references = Vec::with_capacity(request.references.len());
        for (index, input) in request.references.iter().enumerate() {
            references.push(
                self.api
                    .upload(input, &format!("{id}-{}", index + 1))
                    .await?,
            );
        }
        let mask = match &request.mask {
            Some(mask) => Some(self.api.upload(mask, &format!("{id}-mask")).await?),
            None => None,
        };
        let native = match request.resolution {
            Resolution::OneK => self.native,
            Resolution::TwoK => self.native_2k,
        };
        let size = native.fit(request.size);
        let values = Values {
            model: &request.model,
            prompt: &request.prompt,
            negative,
            width: size.width,
            height: size.height,
            batch: request.n,
            // A repeated seed would return the same image from ComfyUI's cache.
            seed: rand::random(),
            references: &references,
            mask: mask.as_deref(),
        };
        let nodes = workflow.fill(&values, &request.extra);
        let nodes = nodes.map_err(|detail| BackendError::Failed { detail })?;
        let given = self.api.submit(id, nodes).await?;
        if given != id {
            images.accepted(&given.to_string()).await?;
        }
        Ok(given)
    }

    /// The stage of a prompt that was submitted before. Failed polls are retried: a server that is briefly away
    /// still has the prompt, and a second one would be generated besides it.
    async fn found(&self, id: Uuid) -> Result<Stage, BackendError> {
        for _ in 0..POLL_FAILURES_MAX {
            if let Ok(stage) = self.api.stage(id).await {
                return Ok(stage);
            }
            self.pause().await;
        }
        self.api.stage(id).await.map_err(|error| lost(&error))
    }

    async fn pause(&self) {
        tokio::time::sleep(jittered(self.poll_interval, 0.8..=1.2)).await;
    }

    /// Waits until the prompt has ended. The caller limits the time.
    async fn follow(&self, id: Uuid) -> Result<Ended, BackendError> {
        let mut failures = 0;
        for poll in 1_u32.. {
            self.pause().await;
            let stage = if poll % POLLS_PER_LOOK == 0 {
                self.api.stage(id).await
            } else {
                let ended = self.api.ended(id).await;
                ended.map(|ended| ended.map_or(Stage::Queued, Stage::Ended))
            };
            match stage {
                Ok(Stage::Ended(ended)) => return Ok(ended),
                Ok(Stage::Queued | Stage::Running) => failures = 0,
                Ok(Stage::Unknown) => break,
                Err(_) if failures < POLL_FAILURES_MAX => failures += 1,
                Err(error) => return Err(lost(&error)),
            }
        }
        let detail = "the prompt is neither in the queue nor in the history any more".to_owned();
        Err(BackendError::Failed { detail })
    }
}

#[async_trait]
impl Backend for Comfyui {
    fn capabilities(&self) -> Capabilities {
        let batches = self
            .workflows()
            .all(|workflow| workflow.count(Role::Batch) > 0);
        let references = self
            .workflows()
            .map(|workflow| workflow.count(Role::Reference));
        Capabilities {
            n_max: if batches { self.batch_max } else { 1 },
            references_max: references.max().unwrap_or_default(),
            mask: self.mask.is_some(),
        }
    }

    fn reads_option(&self, name: &str) -> bool {
        name == NEGATIVE_PROMPT
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let workflow = self.workflow(request)?;
        // A text that is not an id cannot have been submitted.
        let known = request.job.as_deref().and_then(|id| id.parse().ok());
        let stage = match known {
            Some(id) => self.found(id).await?,
            None => Stage::Unknown,
        };
        let id = known.unwrap_or_else(ids::credential_id);
        // Also for a resumed prompt: a cancel needs to know its id.
        images.accepted(&id.to_string()).await?;
        let ended = match stage {
            Stage::Ended(ended) => ended,
            Stage::Queued | Stage::Running => self.follow(id).await?,
            Stage::Unknown => {
                let id = self.submit(request, workflow, id, images).await?;
                self.follow(id).await?
            }
        };
        let outputs = ended.images(workflow, self.api.endpoint.secret())?;
        let mut delivery = Delivery::new(images, request.n);
        for output in outputs.iter().take(usize::from(request.n)) {
            let response = self.api.view(output).await?;
            download::receive(response, &mut delivery).await?;
        }
        if delivery.finished() == 0 {
            let detail = "the output nodes gave no images".to_owned();
            return Err(BackendError::NoImage { detail });
        }
        Ok(())
    }

    /// Removes the prompt from the queue, or stops it if it is running. Older servers stop whatever is running
    /// and ignore the id, so the interrupt is sent only if this prompt is running.
    async fn cancel(&self, job: &str) -> Result<(), BackendError> {
        let Ok(id) = job.parse() else {
            return Ok(());
        };
        self.api.unqueue(id).await?;
        match self.api.stage(id).await? {
            Stage::Running => self.api.interrupt(id).await,
            Stage::Queued | Stage::Ended(_) | Stage::Unknown => Ok(()),
        }
    }

    async fn check(&self) -> Result<(), BackendError> {
        self.api.check().await
    }
}

/// The error when the prompt's state is unknown: it may have been generated.
fn lost(error: &BackendError) -> BackendError {
    let failures = POLL_FAILURES_MAX + 1;
    BackendError::OutcomeUnknown {
        detail: format!("{failures} polls failed, the last: {error}"),
    }
}
