//! A task: one accepted request, from its commit to its single end. Its data and its states.

pub mod backlog;
pub mod inquiry;
pub mod poll;
pub mod repeats;
pub mod storable;
pub mod store;
pub mod wait;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use crate::{
    failure::Class,
    ids::{AccountId, FileId, KeyId, TaskId},
    image::{AspectRatio, Format, ImageSize, Quality, Resolution},
    money::Cny,
    storage::Key,
};

/// What to generate: a complete and valid request, stored with the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The name in the catalog.
    pub model: String,
    /// The client's prompt.
    pub prompt: String,
    /// How many images, from 1 to the model's limit.
    pub n: u8,
    /// The proportions requested.
    pub ratio: AspectRatio,
    /// The pixel count requested.
    pub resolution: Resolution,
    /// In pixels, derived from the ratio and the resolution.
    pub size: ImageSize,
    /// Determines the price.
    pub quality: Quality,
    /// The references, in the client's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
    /// The mask, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Reference>,
    /// Parameters that only some backends support (`background`, `style`, `user`, …), unchanged.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
}

/// An input image that the client supplied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// Already in storage.
    Stored(StoredReference),
    /// On a foreign server, at an `https` address: the worker fetches it.
    Foreign(Url),
}

/// A reference that is in storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReference {
    /// Its key in storage.
    pub object: Key,
    /// The format of the bytes.
    pub format: Format,
    /// The size in bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes in hex, if they came with the request: a repeat of the request has the
    /// same bytes under another key. Empty for an upload, which keeps its key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

/// The state of a task; the first two are `pending` for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Status {
    /// It waits for a worker.
    Queued,
    /// A worker has claimed it.
    Running,
    /// It ended with images.
    Completed,
    /// It ended without images.
    Failed,
}

/// A row of `tasks`.
#[derive(Clone, Debug)]
pub struct Task {
    /// Identifies it, also to clients.
    pub id: TaskId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// The API key that requested it.
    pub api_key_id: KeyId,
    /// The state when the row was read.
    pub status: Status,
    /// What to generate.
    pub request: Request,
    /// The price of one image when the request was accepted.
    pub unit_price: Cny,
    /// Names its images in their links; a credential.
    pub file_id: FileId,
    /// When it was accepted, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// How often a worker has begun it.
    pub attempts: i16,
    /// Increases with every claim: a worker with an older fence has lost the task.
    pub fence: i64,
    /// Time until the deadline when the row was read, by the database's clock.
    pub left: Duration,
}

/// What clients see of a task: its row without the request.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Identifies it.
    pub id: TaskId,
    /// The account that pays it, and may see it.
    pub account_id: AccountId,
    /// The state when the row was read.
    pub status: Status,
    /// The name in the catalog.
    pub model: String,
    /// Determines the price.
    pub quality: Quality,
    /// The pixel count requested.
    pub resolution: Resolution,
    /// The proportions requested.
    pub ratio: AspectRatio,
    /// The price of one image when the request was accepted.
    pub unit_price: Cny,
    /// Names its images in their links; a credential.
    pub file_id: FileId,
    /// When it was accepted, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// The fence of the latest claim.
    pub fence: i64,
    /// How it ended; `None` while it is open.
    pub end: Option<End>,
}

/// A task that this process has claimed, and how it is to be generated.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The task, as it was when claimed.
    pub task: Task,
    /// Which route generates it, and what came before.
    pub assignment: Assignment,
}

/// How a claimed task is to be generated.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// The name of one of its model's routes; `None`: no route can be used.
    pub route: Option<String>,
    /// The upstream's handles of jobs that a lost worker began over this route, by call.
    pub jobs: Vec<Option<String>>,
    /// The attempts that have ended.
    pub tried: Vec<Attempt>,
}

/// One ended attempt to generate a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The name of the route.
    pub route: String,
    /// The upstream's job handles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// From its begin to its end.
    #[serde(default)]
    pub duration_ms: u64,
    /// Why it failed; `None`: images were delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

/// How to end a task, with what the upstreams reported.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The images, or the failure.
    pub outcome: Outcome,
    /// The last attempt; `None`: no upstream was called.
    pub attempt: Option<Attempt>,
    /// The usage that the upstream reported, one value per call.
    pub usage: Vec<Value>,
}

/// How and when a task ended.
#[derive(Clone, Debug)]
pub struct End {
    /// When it ended, by the database's clock.
    pub at: DateTime<Utc>,
    /// The captured amount.
    pub cost: Cny,
    /// The images, or the failure.
    pub outcome: Outcome,
}

/// What a task ended with.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The delivered images, at least one.
    Completed(Vec<Image>),
    /// No image was delivered and nothing is charged.
    Failed(Failure),
}

/// One delivered image. Its position in the list, from 1, is the `seq` in its link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its key in storage.
    pub object: Key,
    /// The format of the bytes.
    pub format: Format,
    /// The size in bytes.
    pub bytes: u64,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// Why a task failed, in words for the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The cause.
    pub kind: FailureKind,
    /// The text; reveals no key, address or other cause.
    pub message: String,
}

/// The cause of a failure; determines the status code and error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Refused by the upstream's safety system.
    Moderation,
    /// The upstream does not accept the request.
    Request,
    /// A reference could not be fetched or is not an image.
    Reference,
    /// The upstream failed or cannot be used.
    Upstream,
    /// We failed.
    Internal,
    /// The task ran past its deadline.
    Deadline,
}

impl Task {
    /// The price of the whole request, held until the task ends.
    pub fn price(&self) -> Cny {
        self.unit_price * u32::from(self.request.n)
    }

    /// What clients see of the task once it has ended.
    pub fn ended(&self, end: End) -> Summary {
        Summary {
            id: self.id,
            account_id: self.account_id,
            status: end.outcome.status(),
            model: self.request.model.clone(),
            quality: self.request.quality,
            resolution: self.request.resolution,
            ratio: self.request.ratio,
            unit_price: self.unit_price,
            file_id: self.file_id,
            created_at: self.created_at,
            fence: self.fence,
            end: Some(end),
        }
    }
}

impl Ending {
    /// An ending without an attempt.
    pub fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            attempt: None,
            usage: Vec::new(),
        }
    }
}

impl Outcome {
    /// The state of a task that ended so.
    pub fn status(&self) -> Status {
        match self {
            Self::Completed(_) => Status::Completed,
            Self::Failed(_) => Status::Failed,
        }
    }
}

impl Summary {
    /// The delivered images; empty unless the task completed.
    pub fn images(&self) -> &[Image] {
        match &self.end {
            Some(End {
                outcome: Outcome::Completed(images),
                ..
            }) => images,
            _ => &[],
        }
    }
}
