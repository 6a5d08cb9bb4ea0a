//! Reads an answer while it comes in: pictures go on at once, what is left is looked at afterwards.

use std::sync::Arc;

use reqwest::Response;
use serde::de::DeserializeOwned;

use super::{BackendError, delivery::Delivery, error};
use crate::backend::json_pictures::{Found, PictureScanner, Place};

/// Hands on the pictures at the `places` of the JSON in `response`, and gives what is left of it.
pub(in crate::backend) async fn receive<T: DeserializeOwned>(
    mut response: Response,
    places: &Arc<[Place]>,
    delivery: &mut Delivery<'_>,
) -> Result<T, BackendError> {
    let mut scanner = PictureScanner::new(Arc::clone(places));
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
        let detail = format!("the answer is not what it should be: {error}");
        match delivery.finished() {
            0 => BackendError::NoImage { detail },
            _ => BackendError::Failed { detail },
        }
    })
}
