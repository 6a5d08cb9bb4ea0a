//! Serves files by capability links: uploads, result links, and the local objects that result links redirect to.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{
    error::ApiError,
    extract::{Query, Segment},
    range::{self, RangeOutcome},
};
use crate::{
    app::App,
    images::links::ResultLink,
    storage::{Disposition, Key, ObjectRead},
    uploads,
};

/// The query of a result link: `?download` asks for an attachment.
#[derive(Deserialize)]
pub(super) struct Download {
    download: Option<String>,
}

impl Download {
    fn disposition(&self, link: &ResultLink) -> Disposition {
        match self.download.as_deref() {
            None | Some("" | "0" | "false" | "no") => Disposition::Inline,
            Some(_) => Disposition::Attachment {
                file_name: link.file_name(),
            },
        }
    }
}

/// `GET /f/image/{name}`: an upload; 410 once it has expired.
pub(super) async fn upload(
    State(app): State<App>,
    Segment(name): Segment,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = async { uploads::store::get(&mut *app.pool.acquire().await?, &name).await };
    let found = app.pool.in_time(found).await?;
    let upload = found.ok_or_else(|| ApiError::not_found("file"))?;
    if upload.expires_at <= app.clock.now() {
        return Err(ApiError::new(StatusCode::GONE, "this upload has expired"));
    }
    let life_s = (upload.expires_at - app.clock.now()).num_seconds();
    let disposition = Disposition::Inline;
    let mut response = object(&app, &upload.object, &disposition, (&method, &headers)).await?;
    cache_for(response.headers_mut(), life_s);
    Ok(response)
}

/// Maximum time in seconds that a browser may cache an object. Objects never change.
const CACHE_S_MAX: i64 = 3600;

/// `GET /v1/images/files/{model}/{date}/{file}`: 302 to a short-lived link to the object.
pub(super) async fn file(
    State(app): State<App>,
    Segment(path): Segment,
    Query(download): Query<Download>,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("file");
    let named = ResultLink::parse(&path).ok_or_else(missing)?;
    let image = named.find(&app).await?.ok_or_else(missing)?;
    let link = app
        .storage
        .link(&image.object, download.disposition(&named))
        .await?;
    let life_s = (link.expires_at - app.clock.now()).num_seconds();
    let location = HeaderValue::try_from(link.url).ok().ok_or_else(missing)?;
    let mut response = StatusCode::FOUND.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    // A client that follows a cached redirect still has half the link's lifetime to fetch the object.
    cache_for(headers, life_s / 2);
    guard(headers);
    Ok(response)
}

/// `GET /f/object/{…}`: the target of a result link if storage is a local directory.
pub(super) async fn local_object(
    State(app): State<App>,
    Segment(path): Segment,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let linked = app.storage.verify(&path);
    let linked = linked.ok_or_else(|| ApiError::not_found("file"))?;
    let asking = (&method, &headers);
    let mut response = object(&app, &linked.key, &linked.disposition, asking).await?;
    cache_for(response.headers_mut(), i64::from(linked.life_s));
    Ok(response)
}

/// Lets the client cache the response for `life_s` seconds, but no shared cache.
fn cache_for(headers: &mut HeaderMap, life_s: i64) {
    let cache = format!("private, max-age={}", life_s.clamp(0, CACHE_S_MAX));
    if let Ok(cache) = HeaderValue::try_from(cache) {
        headers.insert(header::CACHE_CONTROL, cache);
    }
}

/// Serves a stored object: in full, a range, only its headers (HEAD), or 304 if the client has it.
async fn object(
    app: &App,
    key: &Key,
    disposition: &Disposition,
    (method, asking): (&Method, &HeaderMap),
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("file");
    let head = app.storage.head(key).await?.ok_or_else(missing)?;
    let etag = format!("\"{}\"", head.etag.trim_matches('"'));
    let mut headers = object_headers(key, disposition, &etag, head.last_modified);
    let outcome = range::evaluate(asking, &etag, head.last_modified, head.size);
    let (status, range) = match &outcome {
        RangeOutcome::NotModified => (StatusCode::NOT_MODIFIED, None),
        RangeOutcome::Whole => (StatusCode::OK, Some(0..head.size)),
        RangeOutcome::Part(range) => (StatusCode::PARTIAL_CONTENT, Some(range.clone())),
        RangeOutcome::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, None),
    };
    if let Some(content_range) = range::content_range(&outcome, head.size) {
        headers.insert(header::CONTENT_RANGE, content_range);
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        let message = format!(
            "the range lies outside of the file, which has {} bytes",
            head.size
        );
        return Ok((headers, ApiError::new(status, message)).into_response());
    }
    let mut response = Response::new(Body::empty());
    if let Some(range) = range {
        headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
        if method != Method::HEAD {
            let read: ObjectRead = app
                .storage
                .read(key, Some(range))
                .await?
                .ok_or_else(missing)?;
            *response.body_mut() = Body::from_stream(read.stream);
        }
    }
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn object_headers(
    key: &Key,
    disposition: &Disposition,
    etag: &str,
    modified: DateTime<Utc>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let content_type = key.format().content_type();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let changing = [
        (header::ETAG, etag.to_owned()),
        (
            header::LAST_MODIFIED,
            httpdate::fmt_http_date(modified.into()),
        ),
        (header::CONTENT_DISPOSITION, disposition.to_string()),
    ];
    for (name, value) in changing {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    guard(&mut headers);
    headers
}

/// Prevents scripts in the object from running, whatever type a browser assumes, and keeps the link from other sites.
fn guard(headers: &mut HeaderMap) {
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("cross-origin"),
    );
    headers.insert("x-robots-tag", HeaderValue::from_static("noindex"));
}
