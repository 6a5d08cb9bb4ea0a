//! A task: one accepted request, from its commit to its one end. What it is, and its states.

pub mod backlog;
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
};

/// What to generate: valid by type, complete, and kept with the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub model: String,
    pub prompt: String,
    /// How many images, from 1 to the model's limit.
    pub n: u8,
    pub ratio: AspectRatio,
    pub resolution: Resolution,
    /// In pixels, as the ratio and the resolution say.
    pub size: ImageSize,
    pub quality: Quality,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Reference>,
    /// Parameters that only some backends know (`background`, `style`, `user`, …), as they came.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
}

/// An image that the client gave to work from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// In storage already.
    Stored(StoredReference),
    /// On somebody else's server, at an `https` address: the worker fetches it.
    Foreign(Url),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReference {
    /// Its key in storage.
    pub object: String,
    pub format: Format,
    pub bytes: u64,
    /// SHA-256 of the bytes in hex, where they came with the request: a repeat of the request has the
    /// same bytes under another key. Empty for an upload, which keeps its key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Status {
    Queued,
    Running,
    Completed,
    Failed,
}

/// A row of `tasks`.
#[derive(Clone, Debug)]
pub struct Task {
    pub id: TaskId,
    pub account_id: AccountId,
    pub api_key_id: KeyId,
    pub status: Status,
    pub request: Request,
    /// Of one image, as it was when the request was accepted.
    pub unit_price: Cny,
    pub file_id: FileId,
    pub created_at: DateTime<Utc>,
    /// How often a worker has begun it.
    pub attempts: i16,
    /// One more at every claim: a worker with an older one has lost the task.
    pub fence: i64,
    /// Until its deadline, by the database's clock, when it was read.
    pub left: Duration,
    /// How it ended; `None` while it is open.
    pub end: Option<End>,
}

/// What clients are shown of a task: all of its row but what it asked for.
#[derive(Clone, Debug)]
pub struct Summary {
    pub id: TaskId,
    pub account_id: AccountId,
    pub status: Status,
    pub model: String,
    pub quality: Quality,
    pub resolution: Resolution,
    pub ratio: AspectRatio,
    /// Of one image, as it was when the request was accepted.
    pub unit_price: Cny,
    pub file_id: FileId,
    pub created_at: DateTime<Utc>,
    /// Of the latest claim.
    pub fence: i64,
    /// How it ended; `None` while it is open.
    pub end: Option<End>,
}

/// How a claimed task is to be generated.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// The name of a route of its model's; `None`: none can be used.
    pub route: Option<String>,
    /// The upstream's names for jobs that a lost worker began over this route, by call.
    pub jobs: Vec<Option<String>>,
    /// The attempts that are over.
    pub tried: Vec<Attempt>,
}

/// One attempt to have a task generated, when it is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub route: String,
    /// The upstream's names for its jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    #[serde(default)]
    pub duration_ms: u64,
    /// What went wrong; `None`: images were delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

#[derive(Clone, Debug)]
pub struct End {
    pub at: DateTime<Utc>,
    /// What was captured.
    pub cost: Cny,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// What was delivered: one image at least.
    Completed(Vec<Image>),
    Failed(Failure),
}

/// One delivered image. Its place in the list, from 1, is the `seq` in its link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its key in storage.
    pub object: String,
    pub format: Format,
    pub bytes: u64,
    pub width: u32,
    pub height: u32,
}

/// Why a task failed, in words for its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Refused by the upstream's safety system.
    Moderation,
    /// The upstream does not accept the request.
    Request,
    /// A reference could not be fetched, or is no image.
    Reference,
    /// The upstream failed, or cannot be used.
    Upstream,
    /// We failed.
    Internal,
    /// The task ran past its deadline.
    Deadline,
}

impl Task {
    /// What its whole request costs, and what is held until it ends.
    pub fn price(&self) -> Cny {
        self.unit_price * u32::from(self.request.n)
    }

    /// What clients are shown of it, now that it has ended.
    pub fn ended(&self, status: Status, end: End) -> Summary {
        Summary {
            id: self.id,
            account_id: self.account_id,
            status,
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

impl Summary {
    /// The delivered images; none unless it completed.
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
