//! The responses to a generation: 202 with the task's id, or the images as links and, if requested, as base64.
//! Base64 is streamed from storage; no image is held in memory whole.

use std::error::Error;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use serde_json::json;

use crate::{
    accounts::Caller,
    app::App,
    config::InlineImages,
    http::{error::ApiError, page},
    ids::TaskId,
    images::{links, request::ResponseFormat},
    storage::{InvalidKey, Key, SteadyRead, Storage, StorageError},
    tasks::{Image, Outcome, Summary},
};

/// `Retry-After` before the first poll.
const POLL_AFTER_S: u32 = 2;

/// 202: the task is accepted.
pub(super) fn ticket(app: &App, id: TaskId) -> Response {
    let poll_url = format!("{}/v1/images/tasks/{id}", app.public_url);
    let mut response =
        page::json(&json!({ "status": "pending", "task_id": id, "id": id, "poll_url": poll_url }));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, POLL_AFTER_S.into());
    if let Ok(location) = HeaderValue::try_from(poll_url) {
        headers.insert(header::LOCATION, location);
    }
    response
}

/// 200 with the images of a task, or the error it ended with.
pub(super) async fn images(
    app: &App,
    caller: &Caller,
    format: ResponseFormat,
    task: &Summary,
) -> Result<Response, ApiError> {
    if let Some(Outcome::Failed(failure)) = task.end.as_ref().map(|end| &end.outcome) {
        return Err(failure.into());
    }
    let inline = match caller
        .inline_images
        .unwrap_or(app.config.images.inline_images)
    {
        InlineImages::Always => true,
        InlineImages::OnRequest => format == ResponseFormat::B64Json,
        InlineImages::Never => false,
    };
    let mut response = if inline {
        with_images(app, task)
            .await
            .unwrap_or_else(|error| unreadable(task, &error))
    } else {
        with_links(app, task)
    };
    if let Ok(id) = HeaderValue::try_from(task.id.to_string()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-task-id"), id);
    }
    Ok(response)
}

fn with_links(app: &App, task: &Summary) -> Response {
    let data: Vec<_> = links::results(task, &app.public_url)
        .into_iter()
        .map(|url| json!({ "url": url }))
        .collect();
    page::json(&json!({ "id": task.id, "created": task.created_at.timestamp(), "data": data }))
}

/// 503 for images that are stored and charged but cannot be read now. A client that asked for base64 does not
/// look for links, so the error says where the images are.
fn unreadable(task: &Summary, error: &StorageError) -> Response {
    tracing::error!(
        task.id = %task.id,
        error = error as &dyn Error,
        "could not read stored images for a response"
    );
    let message = format!(
        "the image is stored but cannot be read at present: it is at /v1/images/tasks/{}",
        task.id
    );
    ApiError::unavailable(&message, READ_RETRY_S)
        .spent()
        .into_response()
}

/// `Retry-After` while stored images cannot be read.
const READ_RETRY_S: u32 = 5;

/// The same JSON as [`with_links`], with `b64_json` beside each `url`. Opens all images, and starts to read the
/// first, before the status is sent.
async fn with_images(app: &App, task: &Summary) -> Result<Response, StorageError> {
    let mut length = 0;
    let mut pieces: Vec<BoxStream<'static, Result<Bytes, StorageError>>> = Vec::new();
    let mut text = |text: String, pieces: &mut Vec<BoxStream<'static, _>>| {
        length += text.len() as u64;
        pieces.push(stream::iter([Ok(Bytes::from(text))]).boxed());
    };
    let created = task.created_at.timestamp();
    text(
        format!(r#"{{"id":"{}","created":{created},"data":["#, task.id),
        &mut pieces,
    );
    let mut opened =
        try_join_all(task.images().iter().map(|image| open(&app.storage, image))).await?;
    if let Some(first) = opened.first_mut() {
        first.begin().await?;
    }
    let mut encoded = 0;
    for (index, (read, url)) in opened
        .into_iter()
        .zip(links::results(task, &app.public_url))
        .enumerate()
    {
        let comma = if index == 0 { "" } else { "," };
        text(
            format!(r#"{comma}{{"url":{},"b64_json":""#, json!(url)),
            &mut pieces,
        );
        encoded += read.size().div_ceil(3) * 4;
        pieces.push(base64(read));
        text(r#""}"#.to_owned(), &mut pieces);
    }
    text("]}".to_owned(), &mut pieces);
    let mut response = Response::new(Body::from_stream(stream::iter(pieces).flatten()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_LENGTH, (length + encoded).into());
    Ok(response)
}

async fn open(storage: &Storage, image: &Image) -> Result<SteadyRead, StorageError> {
    let key: Key = image
        .object
        .parse()
        .map_err(|error: InvalidKey| StorageError::Settings(error.to_string()))?;
    storage.read_steadily(key).await
}

/// Encodes a stored image as base64 while it is read.
fn base64(read: SteadyRead) -> BoxStream<'static, Result<Bytes, StorageError>> {
    let ends = read
        .into_stream()
        .map(|piece| piece.map(Some))
        .chain(stream::iter([Ok(None)]));
    let encoded = ends.scan(Vec::new(), |carry, piece| {
        let encoded = piece.map(|piece| encode(carry, piece));
        std::future::ready(Some(encoded))
    });
    encoded
        .try_filter(|piece| std::future::ready(!piece.is_empty()))
        .boxed()
}

/// Encodes whole groups of three bytes and carries the rest over to the next piece; `None` ends the image.
fn encode(carry: &mut Vec<u8>, piece: Option<Bytes>) -> Bytes {
    let Some(piece) = piece else {
        return base64_simd::STANDARD
            .encode_to_string(std::mem::take(carry))
            .into();
    };
    let missing = if carry.is_empty() {
        0
    } else {
        (3 - carry.len()).min(piece.len())
    };
    carry.extend_from_slice(&piece[..missing]);
    let mut encoded = String::new();
    if carry.len() == 3 {
        encoded = base64_simd::STANDARD.encode_to_string(&*carry);
        carry.clear();
    }
    if carry.is_empty() {
        let (groups, rest) = piece[missing..].split_at((piece.len() - missing) / 3 * 3);
        base64_simd::STANDARD.encode_append(groups, &mut encoded);
        carry.extend_from_slice(rest);
    }
    encoded.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_encode_like_the_whole(pieces: Vec<Vec<u8>>) {
            let mut carry = Vec::new();
            let mut encoded = Vec::new();
            for piece in &pieces {
                encoded.extend_from_slice(&encode(&mut carry, Some(piece.clone().into())));
            }
            encoded.extend_from_slice(&encode(&mut carry, None));
            let whole = base64_simd::STANDARD.encode_to_string(pieces.concat());
            prop_assert_eq!(String::from_utf8(encoded).unwrap(), whole);
        }
    }
}
