//! `POST /v1/images/generations` and `/edits`, which are the same operation. A synchronous request submits a
//! task like an asynchronous one, and then waits for it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;

use super::{answer, read};
use crate::{
    accounts::Caller,
    app::App,
    http::{
        error::ApiError,
        extract::{Admitted, Query},
    },
    images::{
        Images,
        generate::GenerateError,
        request::ResponseFormat,
        submit::{Generation, Repeat},
    },
};

const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// The query of a generation request.
#[derive(Deserialize)]
pub(in crate::http) struct Wanted {
    #[serde(rename = "async")]
    is_async: Option<String>,
}

/// Waits for the images, unless the query contains `async=1`.
pub(in crate::http) async fn generate(
    State(images): State<Images>,
    Admitted(caller): Admitted,
    Query(wanted): Query<Wanted>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted = wanted.is_async.unwrap_or_default().to_ascii_lowercase();
    if matches!(wanted.as_str(), "1" | "true" | "yes") {
        return generate_async(State(images), Admitted(caller), request).await;
    }
    if images.shutdown.has_begun() {
        return Err(GenerateError::ShuttingDown.into());
    }
    let (generation, requested) = parse(&images, &caller, request).await?;
    let format = answer::format(&images, &caller, requested);
    let generated = images.generate(generation, format).await?;
    answer::images(&images, format, &generated.task).await
}

/// Submits the task and returns 202 with its id.
pub(in crate::http) async fn generate_async(
    State(images): State<Images>,
    Admitted(caller): Admitted,
    request: Request,
) -> Result<Response, ApiError> {
    let (generation, _) = parse(&images, &caller, request).await?;
    let id = images.queue(generation).await?;
    Ok(answer::ticket(&images, id))
}

/// Parses a request, with the cheap checks first.
async fn parse(
    app: &App,
    caller: &Arc<Caller>,
    request: Request,
) -> Result<(Generation, ResponseFormat), ApiError> {
    let repeat = repeat(request.headers())?;
    app.storage.usable()?;
    let validated = read::read(app, caller, request).await?;
    let generation = Generation {
        caller: Arc::clone(caller),
        request: validated.request,
        inputs: validated.inputs,
        unit_price: validated.unit_price,
        repeat,
    };
    Ok((generation, validated.response_format))
}

/// Whether the headers mark the request as a possible repeat; 400 if `Idempotency-Key` is invalid.
fn repeat(headers: &HeaderMap) -> Result<Repeat, ApiError> {
    if let Some(key) = headers.get("idempotency-key") {
        let refuse = || {
            let message = format!(
                "Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible characters"
            );
            ApiError::new(StatusCode::BAD_REQUEST, message).param("Idempotency-Key")
        };
        let key = key.to_str().ok().ok_or_else(&refuse)?.trim();
        let fits = !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_CHARS_MAX;
        return if fits {
            Ok(Repeat::Key(key.to_owned()))
        } else {
            Err(refuse())
        };
    }
    let retries = headers
        .get("x-stainless-retry-count")
        .and_then(|count| count.to_str().ok()?.trim().parse::<u16>().ok());
    Ok(match retries {
        Some(number @ 1..) => Repeat::Retry(number),
        Some(0) | None => Repeat::No,
    })
}
