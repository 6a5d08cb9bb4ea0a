//! Calls to ComfyUI's own API.

use reqwest::{Response, StatusCode, multipart::Form};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    history::{Ended, Image},
    queue::{Found, QueueScanner},
};
use crate::backend::{
    BackendError, Input,
    upstream::{
        endpoint::Endpoint,
        error::{self, UpstreamError},
        inputs::{self, ReadFault},
    },
};

/// The history of one prompt contains the workflow and its nodes' output texts, but no images.
const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The queue contains the workflow of every prompt in it; it is scanned while it arrives, and not kept.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The folder for references, below ComfyUI's temporary folder.
const SUBFOLDER: &str = "easel";

/// The calls to one ComfyUI.
pub(super) struct Api {
    /// Its address and key.
    pub(super) endpoint: Endpoint,
}

/// The stage of a prompt.
pub(super) enum Stage {
    /// It has ended: with images, or with an error.
    Ended(Ended),
    /// It waits in ComfyUI's queue.
    Queued,
    /// ComfyUI is executing it.
    Running,
    /// The prompt was never submitted, or ComfyUI has restarted since.
    Unknown,
}

#[derive(Deserialize)]
struct Uploaded {
    name: String,
    #[serde(default)]
    subfolder: String,
    #[serde(rename = "type")]
    folder: String,
}

#[derive(Deserialize)]
struct Submitted {
    prompt_id: Uuid,
}

impl Api {
    /// Uploads an input and returns the name by which a node loads it. ComfyUI empties the temporary folder
    /// when it starts, so clients' images do not stay there.
    pub(super) async fn upload(&self, input: &Input, stem: &str) -> Result<String, BackendError> {
        self.try_upload(input, stem)
            .await
            .map_err(|error| match error {
                // Whatever failed, nothing has started to generate.
                BackendError::OutcomeUnknown { detail } => BackendError::Unreachable { detail },
                other => other,
            })
    }

    async fn try_upload(&self, input: &Input, stem: &str) -> Result<String, BackendError> {
        let fault = ReadFault::default();
        let form = Form::new()
            .text("type", "temp")
            .text("subfolder", SUBFOLDER)
            .text("overwrite", "true")
            .part("image", inputs::file(input, stem, &fault)?);
        let request = self.endpoint.post("upload/image").multipart(form);
        let response = inputs::send(request, &fault).await?;
        let stored: Uploaded = self.answer(response).await?;
        Ok(match stored.subfolder.as_str() {
            "" => format!("{} [{}]", stored.name, stored.folder),
            folder => format!("{folder}/{} [{}]", stored.name, stored.folder),
        })
    }

    /// Queues a workflow as the prompt `id` and returns the prompt's id, which differs if the server is too old
    /// to accept ours.
    pub(super) async fn submit(
        &self,
        id: Uuid,
        nodes: Map<String, Value>,
    ) -> Result<Uuid, BackendError> {
        let body = json!({"prompt": nodes, "prompt_id": id});
        let sent = self.endpoint.post("prompt").json(&body).send().await;
        let mut response = sent.map_err(error::transport)?;
        if response.status() == StatusCode::BAD_REQUEST {
            let body = read(&mut response, ANSWER_BYTES_MAX).await?;
            return Err(self.rejection(&body));
        }
        let submitted: Submitted = self.answer(response).await?;
        Ok(submitted.prompt_id)
    }

    /// How the prompt ended; `None`: ComfyUI's history does not have it.
    pub(super) async fn ended(&self, id: Uuid) -> Result<Option<Ended>, BackendError> {
        let mut response = self.get(&format!("history/{id}")).await?;
        let body = read(&mut response, HISTORY_BYTES_MAX).await?;
        Ended::of(&body, &id.to_string())
    }

    /// The stage of the prompt, from the history and the queue.
    pub(super) async fn stage(&self, id: Uuid) -> Result<Stage, BackendError> {
        if let Some(ended) = self.ended(id).await? {
            return Ok(Stage::Ended(ended));
        }
        match self.queued(id).await? {
            Found::Running => return Ok(Stage::Running),
            Found::Pending => return Ok(Stage::Queued),
            Found::Nowhere => {}
        }
        // The prompt may have ended between the two requests.
        let ended = self.ended(id).await?;
        Ok(ended.map_or(Stage::Unknown, Stage::Ended))
    }

    async fn queued(&self, id: Uuid) -> Result<Found, BackendError> {
        let mut response = self.get("queue").await?;
        let mut scanner = QueueScanner::new(&id.to_string());
        let mut bytes = 0;
        while let Some(piece) = response.chunk().await.map_err(error::interrupted)? {
            bytes += piece.len();
            if bytes > QUEUE_BYTES_MAX {
                return Err(too_long(QUEUE_BYTES_MAX));
            }
            if !scanner.take(&piece) {
                return Err(invalid(&"it is not a queue"));
            }
        }
        scanner.finish().ok_or_else(|| invalid(&"it is cut off"))
    }

    /// Removes the prompt from the queue, if it still waits there.
    pub(super) async fn unqueue(&self, id: Uuid) -> Result<(), BackendError> {
        self.post("queue", &json!({"delete": [id]})).await
    }

    /// Interrupts the prompt, if ComfyUI is executing it.
    pub(super) async fn interrupt(&self, id: Uuid) -> Result<(), BackendError> {
        self.post("interrupt", &json!({"prompt_id": id})).await
    }

    /// Requests an image.
    pub(super) async fn view(&self, image: &Image) -> Result<Response, BackendError> {
        let query = [
            ("filename", &image.filename),
            ("subfolder", &image.subfolder),
            ("type", &image.folder),
        ];
        let request = self.endpoint.get("view").query(&query);
        request.send().await.map_err(error::interrupted)
    }

    /// Succeeds if ComfyUI answers.
    pub(super) async fn check(&self) -> Result<(), BackendError> {
        let response = self.endpoint.check("system_stats").await?;
        self.answer::<IgnoredAny>(response).await.map(drop)
    }

    async fn get(&self, path: &str) -> Result<Response, BackendError> {
        let sent = self.endpoint.get(path).send().await;
        self.endpoint.good(sent.map_err(error::interrupted)?).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), BackendError> {
        let sent = self.endpoint.post(path).json(body).send().await;
        let response = sent.map_err(error::transport)?;
        self.endpoint.good(response).await.map(drop)
    }

    async fn answer<T: serde::de::DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<T, BackendError> {
        let mut response = self.endpoint.good(response).await?;
        let body = read(&mut response, ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&body).map_err(|error| invalid(&error))
    }

    /// The message names the node at fault but not its input, which may be the prompt.
    fn rejection(&self, body: &[u8]) -> BackendError {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let api_key = self.endpoint.secret();
        let mut message = UpstreamError::of_value(&body["error"], api_key).message;
        if message.is_empty() {
            "the workflow was not accepted".clone_into(&mut message);
        }
        let nodes = body["node_errors"].as_object();
        if let Some((id, node)) = nodes.and_then(|nodes| nodes.iter().next()) {
            let error = UpstreamError::of_value(&node["errors"][0], api_key).message;
            let class = node["class_type"].as_str().unwrap_or_default();
            message = format!("{message}: node {id} ({class}): {error}");
        }
        BackendError::Invalid {
            message: crate::backend::upstream::message::clean(&message, api_key),
        }
    }
}

async fn read(response: &mut Response, bytes_max: usize) -> Result<Vec<u8>, BackendError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(error::interrupted)? {
        if body.len() + piece.len() > bytes_max {
            return Err(too_long(bytes_max));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn too_long(bytes_max: usize) -> BackendError {
    BackendError::Failed {
        detail: format!("an answer is longer than {bytes_max} bytes"),
    }
}

fn invalid(fault: &dyn std::fmt::Display) -> BackendError {
    BackendError::Failed {
        detail: format!("the answer is not from ComfyUI: {fault}"),
    }
}
