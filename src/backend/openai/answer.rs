//! Reads an answer while it comes in: pictures go on at once, what is left is looked at afterwards.

use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::backend::{
    BackendError,
    json_pictures::{Found, PictureScanner},
    upstream::{
        delivery::Delivery,
        error::{self, UpstreamError},
    },
};

/// What an answer holds beside the pictures that came in it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    data: Option<Vec<Entry>>,
    /// Some upstreams answer 200 with an error.
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    /// `true` where a picture has been taken out.
    #[serde(default)]
    b64_json: Value,
    #[serde(default)]
    url: Value,
}

/// Hands on the pictures in the body of `response`.
pub(super) async fn receive(
    mut response: Response,
    delivery: &mut Delivery<'_>,
) -> Result<Answer, BackendError> {
    let mut scanner = PictureScanner::default();
    while let Some(chunk) = response.chunk().await.map_err(error::transport)? {
        let mut left = &chunk[..];
        while let Some(found) = scanner.next(&mut left).map_err(error::invalid_answer)? {
            match found {
                Found::Piece(piece) => delivery.write(piece).await?,
                Found::End => delivery.finish().await?,
            }
        }
    }
    let rest = scanner.into_rest();
    serde_json::from_slice(&rest).map_err(|error| {
        let detail = format!("the answer is not an images object: {error}");
        match delivery.finished() {
            0 => BackendError::NoImage { detail },
            _ => BackendError::Failed { detail },
        }
    })
}

impl Answer {
    /// Where the pictures are that did not come in the answer itself.
    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.data
            .iter()
            .flatten()
            .filter(|entry| entry.b64_json != Value::Bool(true))
            .filter_map(|entry| entry.url.as_str())
            .filter(|url| !url.is_empty())
    }

    /// The error for an answer that has led to no picture.
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
