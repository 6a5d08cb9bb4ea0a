//! The responses to a generation: 202 with the task's id, or the images as links and, if requested, as base64.
//! Base64 is streamed from storage; no image is held in memory whole.

use std::error::Error;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::{
    accounts::Caller,
    app::App,
    base64::StreamedText,
    config::InlineImages,
    http::{error::ApiError, page},
    ids::TaskId,
    images::{links, request::ResponseFormat},
    storage::{SteadyRead, Storage, StorageError},
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

/// The format in which the caller gets its images: what it requested, unless a setting decides.
pub(super) fn format(app: &App, caller: &Caller, requested: ResponseFormat) -> ResponseFormat {
    let setting = caller
        .inline_images
        .unwrap_or(app.config.images.inline_images);
    match setting {
        InlineImages::Always => ResponseFormat::B64Json,
        InlineImages::OnRequest => requested,
        InlineImages::Never => ResponseFormat::Url,
    }
}

/// 200 with the images of a task, or the error it ended with.
pub(super) async fn images(
    app: &App,
    format: ResponseFormat,
    task: &Summary,
) -> Result<Response, ApiError> {
    if let Some(Outcome::Failed(failure)) = task.end.as_ref().map(|end| &end.outcome) {
        return Err(failure.into());
    }
    let mut response = if format == ResponseFormat::B64Json {
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
    let created = task.created_at.timestamp();
    let mut body = StreamedText::default();
    body.text(format!(
        r#"{{"id":"{}","created":{created},"data":["#,
        task.id
    ));
    let mut opened =
        try_join_all(task.images().iter().map(|image| open(&app.storage, image))).await?;
    if let Some(first) = opened.first_mut() {
        first.begin().await?;
    }
    for (index, (read, url)) in opened
        .into_iter()
        .zip(links::results(task, &app.public_url))
        .enumerate()
    {
        let comma = if index == 0 { "" } else { "," };
        body.text(format!(r#"{comma}{{"url":{},"b64_json":""#, json!(url)));
        body.image(read.size(), read.into_stream());
        body.text(r#""}"#);
    }
    body.text("]}");
    let length = body.length();
    let mut response = Response::new(Body::from_stream(body.into_stream()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

async fn open(storage: &Storage, image: &Image) -> Result<SteadyRead, StorageError> {
    storage.read_steadily(image.object.clone()).await
}
