//! Reads an answer, and classifies one without an image.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::backend::{BackendError, json_images::ImagePath, upstream::error::UpstreamError};

/// The locations of the images.
pub(super) fn paths() -> Arc<[ImagePath]> {
    let b64_json = ImagePath::of_base64("/data/*/b64_json");
    Arc::new([b64_json, ImagePath::of_data_urls("/data/*/url")])
}

/// The answer without the images that it contained.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    data: Option<Vec<Entry>>,
    /// Some upstreams answer 200 with an error.
    #[serde(default)]
    error: Option<Value>,
    /// The usage that the upstream reports, unchanged.
    #[serde(default)]
    pub(super) usage: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    /// `true` if the scanner replaced an image.
    #[serde(default)]
    b64_json: Value,
    #[serde(default)]
    url: Value,
}

impl Answer {
    /// The URLs of the images that were not in the answer itself.
    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.data
            .iter()
            .flatten()
            .filter(|entry| entry.b64_json != Value::Bool(true))
            .filter_map(|entry| entry.url.as_str())
            .filter(|url| !url.is_empty())
    }

    /// The error for an answer without an image.
    pub(super) fn without_image(&self, api_key: &str) -> BackendError {
        let Some(error) = self.error.as_ref().filter(|error| !error.is_null()) else {
            return BackendError::NoImage {
                detail: format!("{} entries", self.data.as_ref().map_or(0, Vec::len)),
            };
        };
        let error = UpstreamError::of_value(error, api_key);
        if error.is_refusal() {
            return BackendError::Refused {
                message: error.message,
            };
        }
        BackendError::NoImage {
            detail: error.message,
        }
    }
}
