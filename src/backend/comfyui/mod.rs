//! ComfyUI: a workflow of the operator's with the request's values put into their bindings, submitted,
//! polled, and its images fetched.
//!
//! The prompt's id is ours and is noted before it is submitted: whoever comes later, knowing the id, finds
//! the prompt in ComfyUI's history or queue and submits it only if it is in neither.

mod api;
mod binding;
mod history;
mod queue;
mod workflow;

use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
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
use crate::{config::ComfyuiBackend, ids, image::Resolution};
use api::{Api, Stage};
use binding::Role;
use history::Ended;
use workflow::{Source, Values, Workflow};

pub use workflow::WorkflowError;

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);
/// How far a pause between polls may be off, either way: many tasks don't poll at once.
const JITTER: f64 = 0.2;
/// Every so many polls the queue is looked at too: a restarted ComfyUI has forgotten what was in it.
const POLLS_PER_LOOK: u32 = 10;
/// So many polls may fail in a row.
const POLL_FAILURES_MAX: u32 = 5;
/// Of the option `negative_prompt`; as many as a prompt may have.
/// The client's parameter that says what is not to be seen.
const NEGATIVE_PROMPT: &str = "negative_prompt";
const NEGATIVE_CHARS_MAX: usize = 32_000;

/// A ComfyUI server.
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

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error(transparent)]
    Workflow(#[from] WorkflowError),
}

impl Comfyui {
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
            // The same one twice would get the same image, from ComfyUI's cache.
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

    /// How far a prompt is that was submitted before. A server that is away for a moment has not forgotten
    /// it: another prompt would be generated beside it.
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
        let pause = self
            .poll_interval
            .mul_f64(rand::rng().random_range(1.0 - JITTER..1.0 + JITTER));
        tokio::time::sleep(pause).await;
    }

    /// Waits until the prompt has ended. How long that may take is decided above.
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
        // What is no id cannot have been submitted.
        let known = request.job.as_deref().and_then(|id| id.parse().ok());
        let stage = match known {
            Some(id) => self.found(id).await?,
            None => Stage::Unknown,
        };
        let id = known.unwrap_or_else(ids::credential_id);
        // For one that goes on too: whoever gives it up must know its name.
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

    /// Takes it out of the queue; if it is running, stops it. Older servers stop whatever runs, whichever
    /// prompt they are told: so they are told only if it is this one.
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
        self.api.system_stats(CHECK_TIMEOUT).await
    }
}

/// Nothing is known of the prompt any more, which may have been generated.
fn lost(error: &BackendError) -> BackendError {
    let failures = POLL_FAILURES_MAX + 1;
    BackendError::OutcomeUnknown {
        detail: format!("{failures} polls failed, the last: {error}"),
    }
}
