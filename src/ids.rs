//! Identifiers. Rows use UUID v7, so that indexes grow at one end. Credentials (file ids, upload
//! names) are fully random.

use rand::{RngExt, distr::Alphanumeric};
use uuid::Uuid;

/// Identifies a task. Time-ordered; may be given to support, never a credential.
pub type TaskId = Uuid;
/// Identifies an account.
pub type AccountId = Uuid;
/// Identifies an API key's row, not the key itself.
pub type KeyId = Uuid;
/// Identifies the images of one task in their links: 122 random bits, a credential.
pub type FileId = Uuid;
/// Identifies an upload's row.
pub type UploadId = Uuid;

/// A time-ordered id for a row.
#[expect(clippy::disallowed_methods, reason = "the one place that makes them")]
pub fn row_id() -> Uuid {
    Uuid::now_v7()
}

/// A random id for a credential: whoever knows it has access.
#[expect(clippy::disallowed_methods, reason = "the one place that makes them")]
pub fn credential_id() -> Uuid {
    Uuid::new_v4()
}

/// 128 random bits as lower-case hex, for capability links.
pub fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// `count` random characters of `[A-Za-z0-9]`, 5.95 bits each.
pub fn random_base62(count: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(count)
        .map(char::from)
        .collect()
}
