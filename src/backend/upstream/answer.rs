//! Reads an answer while it arrives: images are passed on at once, the rest is parsed at the end.

use std::sync::Arc;

use reqwest::Response;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{BackendError, delivery::Delivery, error};
use crate::backend::json_images::{Found, ImagePath, ImageScanner, REST_BYTES_MAX};

/// Passes on the images at the `paths` of the JSON in `response`, and parses the rest of it.
pub(in crate::backend) async fn receive<T: DeserializeOwned>(
    mut response: Response,
    paths: &Arc<[ImagePath]>,
    delivery: &mut Delivery<'_>,
) -> Result<T, BackendError> {
    let mut scanner = ImageScanner::new(Arc::clone(paths));
    while let Some(chunk) = response.chunk().await.map_err(error::interrupted)? {
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
        let detail = format!("the answer has an unexpected shape: {error}");
        match delivery.finished() {
            0 => BackendError::NoImage { detail },
            _ => BackendError::Failed { detail },
        }
    })
}

/// Reads the JSON of an answer without images. The error says what is wrong with it.
pub(in crate::backend) async fn small(mut response: Response) -> Result<Value, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(error::detail)? {
        if body.len() + chunk.len() > REST_BYTES_MAX {
            return Err(format!("the answer has more than {REST_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| format!("the answer is not JSON: {error}"))
}
