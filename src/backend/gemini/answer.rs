//! Reads an answer while it arrives. A thinking model may generate drafts first. A draft is marked, if at all,
//! by a flag after its image, so only the last image counts, and those before it are discarded.

use std::sync::Arc;

use reqwest::Response;
use serde_json::Value;

use crate::backend::{
    BackendError,
    json_images::{Found, ImagePath, ImageScanner},
    upstream::{delivery::Delivery, error, message},
};

/// The most images in one answer: far more than any number of drafts.
const IMAGES_MAX: usize = 32;

/// The finish reasons of refused candidates.
const REFUSALS: [&str; 8] = [
    "SAFETY",
    "PROHIBITED_CONTENT",
    "BLOCKLIST",
    "SPII",
    "RECITATION",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
];

/// The locations of the images. Signatures are skipped: they may be longer than images and are not needed.
pub(super) fn paths() -> Arc<[ImagePath]> {
    Arc::new([
        ImagePath::of_base64("/candidates/*/content/parts/*/inlineData/data"),
        ImagePath::of_echo("/candidates/*/content/parts/*/thoughtSignature"),
    ])
}

/// The answer without its images.
#[derive(Debug)]
pub(super) struct Answer(Value);

/// Passes on the last image in the body of `response`, unless it is a draft too.
pub(super) async fn receive(
    mut response: Response,
    paths: &Arc<[ImagePath]>,
    delivery: &mut Delivery<'_>,
) -> Result<Answer, BackendError> {
    let mut scanner = ImageScanner::new(Arc::clone(paths));
    let mut images = 0;
    let mut whole = false;
    while let Some(chunk) = response.chunk().await.map_err(error::interrupted)? {
        let mut left = &chunk[..];
        while let Some(found) = scanner.next(&mut left).map_err(error::invalid_answer)? {
            match found {
                Found::Piece(piece) => {
                    if std::mem::take(&mut whole) {
                        delivery.discard();
                    }
                    delivery.write(piece).await?;
                }
                Found::End => {
                    whole = true;
                    images += 1;
                    if images > IMAGES_MAX {
                        let detail = format!("more than {IMAGES_MAX} images in one answer");
                        return Err(BackendError::Failed { detail });
                    }
                }
            }
        }
    }
    let rest = serde_json::from_slice(&scanner.into_rest());
    let answer = rest.map(Answer).map_err(|error| BackendError::NoImage {
        detail: format!("the answer is not JSON: {error}"),
    })?;
    if whole && answer.ends_with_a_draft() {
        delivery.discard();
    } else if whole {
        delivery.finish().await?;
    }
    Ok(answer)
}

impl Answer {
    /// Takes out the usage that the upstream reports.
    pub(super) fn usage(&mut self) -> Option<Value> {
        self.0.get_mut("usageMetadata").map(Value::take)
    }

    /// The error for an answer without an image. The model's own text is not shown, because it may repeat
    /// the prompt.
    pub(super) fn without_image(&self, api_key: &str) -> BackendError {
        let feedback = &self.0["promptFeedback"];
        let blocked = text(&feedback["blockReason"]);
        if !matches!(blocked, "" | "BLOCK_REASON_UNSPECIFIED") {
            return refused([text(&feedback["blockReasonMessage"]), blocked], api_key);
        }
        let refusal = self
            .candidates()
            .find(|one| REFUSALS.contains(&text(&one["finishReason"])));
        if let Some(one) = refusal {
            let said = [text(&one["finishMessage"]), text(&one["finishReason"])];
            return refused(said, api_key);
        }
        let ends = self.candidates().map(|one| text(&one["finishReason"]));
        let ends: Vec<&str> = ends.collect();
        let detail = format!(
            "{} parts, ended by: {}",
            self.parts().count(),
            ends.join(", ")
        );
        BackendError::NoImage {
            detail: message::clean(&detail, api_key),
        }
    }

    /// Whether the last image is a draft: part of the model's thoughts, not of its answer.
    fn ends_with_a_draft(&self) -> bool {
        // The scanner replaced each image with `true`.
        let mut images = self
            .parts()
            .filter(|part| part["inlineData"]["data"] == true);
        images
            .next_back()
            .is_some_and(|part| part["thought"] == true)
    }

    fn parts(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.candidates()
            .flat_map(|one| items(&one["content"]["parts"]))
    }

    fn candidates(&self) -> impl DoubleEndedIterator<Item = &Value> {
        items(&self.0["candidates"])
    }
}

fn items(list: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A refusal with the first text that is not empty.
fn refused(said: [&str; 2], api_key: &str) -> BackendError {
    let said = said.into_iter().find(|text| !text.is_empty());
    BackendError::Refused {
        message: message::clean(said.unwrap_or_default(), api_key),
    }
}
