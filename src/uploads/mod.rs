//! Uploads: input images that clients send, kept for 72 hours. Images inside a request are stored
//! the same way, but have no URL and are deleted once their task must have ended.

mod names;
mod quota;
pub mod store;

pub use names::{safe_file_name, url_name};
pub use quota::{QuotaError, StorageQuota};

use chrono::{DateTime, Utc};

use crate::{
    ids::{AccountId, UploadId},
    image::Format,
    storage::Key,
};

/// A row of `uploads`.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Identifies its row; never a credential.
    pub id: UploadId,
    /// The account whose quota it counts against.
    pub account_id: AccountId,
    /// The name in its URL; `None` if it came inside a request.
    pub name: Option<String>,
    /// The key of its bytes in storage.
    pub object: Key,
    /// The format of the bytes.
    pub format: Format,
    /// The size in bytes.
    pub bytes: i64,
    /// The client's file name, made safe.
    pub file_name: String,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// When it may be deleted.
    pub expires_at: DateTime<Utc>,
}
