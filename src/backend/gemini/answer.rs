//! Reads an answer while it comes in. A model that thinks may generate drafts first, and a draft is only told by a
//! flag behind its image, if at all: so the last image is the one, and those before it are forgotten.

use std::sync::Arc;

use reqwest::Response;
use serde_json::Value;

use crate::backend::{
    BackendError,
    json_images::{Found, ImageScanner, JsonPath},
    upstream::{delivery::Delivery, error, message},
};

/// Images in one answer: far more than there are drafts.
const IMAGES_MAX: usize = 32;

/// Why a candidate has ended that was refused.
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

/// Where the images are. Signatures may be longer than they are, and nobody needs them here.
pub(super) fn paths() -> Arc<[JsonPath]> {
    let part = "candidates[].content.parts[]";
    Arc::new([
        JsonPath::of_base64(&format!("{part}.inlineData.data")),
        JsonPath::of_echo(&format!("{part}.thoughtSignature")),
    ])
}

/// What an answer holds beside its images.
#[derive(Debug)]
pub(super) struct Answer(Value);

/// Hands on the last image in the body of `response`, unless it is a draft too.
pub(super) async fn receive(
    mut response: Response,
    paths: &Arc<[JsonPath]>,
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
        detail: format!("the answer is no JSON: {error}"),
    })?;
    if whole && answer.ends_with_a_draft() {
        delivery.discard();
    } else if whole {
        delivery.finish().await?;
    }
    Ok(answer)
}

impl Answer {
    pub(super) fn usage(&mut self) -> Option<Value> {
        self.0.get_mut("usageMetadata").map(Value::take)
    }

    /// The error for an answer that has led to no image. What the model says instead is not shown: it may
    /// repeat the prompt.
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

    /// Whether the last image is one that the model has thought of, but not answered.
    fn ends_with_a_draft(&self) -> bool {
        // An image that has been taken out left `true`.
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

/// With the first text that is there.
fn refused(said: [&str; 2], api_key: &str) -> BackendError {
    let said = said.into_iter().find(|text| !text.is_empty());
    BackendError::Refused {
        message: message::clean(said.unwrap_or_default(), api_key),
    }
}
