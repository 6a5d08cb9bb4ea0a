//! Uploads: images that clients send to work from, kept for 72 hours. Those that come inside a
//! request are kept the same way, but have no URL, and go once their task must have ended.

mod names;
mod stock;
pub mod store;

pub use names::{safe_file_name, url_name};
pub use stock::{Stock, StockError};

use chrono::{DateTime, Utc};

use crate::{
    ids::{AccountId, UploadId},
    image::Format,
};

/// A row of `uploads`.
#[derive(Clone, Debug)]
pub struct Upload {
    pub id: UploadId,
    pub account_id: AccountId,
    /// What stands in its URL; `None` if it came inside a request.
    pub name: Option<String>,
    /// The key of its bytes in storage.
    pub object: String,
    pub format: Format,
    pub bytes: i64,
    /// As the client named it, made safe.
    pub file_name: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}
