//! `POST /v1/images/generations` and `/edits`, which are the same operation. A synchronous request submits a
//! task like an asynchronous one, and then waits for it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;

use super::{answer, read, resolve::ValidatedRequest};
use crate::{
    accounts::Caller,
    app::App,
    http::{
        error::ApiError,
        extract::{Admitted, Query},
    },
    ids::{self, TaskId},
    images::{
        admission::{self, Mode},
        dispatch,
        submit::{Repeat, Slot, Submission, Submitted},
    },
    tasks::{self, Summary, wait::Waited},
};

const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// How long after its deadline the end of a task may still be reported.
const END_GRACE: Duration = Duration::from_secs(8);

/// The query of a generation request.
#[derive(Deserialize)]
pub(in crate::http) struct Wanted {
    #[serde(rename = "async")]
    is_async: Option<String>,
}

/// Waits for the images, unless the query contains `async=1`.
pub(in crate::http) async fn generate(
    State(app): State<App>,
    Admitted(caller): Admitted,
    Query(wanted): Query<Wanted>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted = wanted.is_async.unwrap_or_default().to_ascii_lowercase();
    if matches!(wanted.as_str(), "1" | "true" | "yes") {
        return generate_async(State(app), Admitted(caller), request).await;
    }
    if app.shutdown.has_begun() {
        return Err(shutting_down());
    }
    let repeat = repeat(request.headers())?;
    app.storage.usable()?;
    let validated = read::read(&app, &caller, request).await?;
    let response_format = validated.response_format;
    let task = submit_and_wait(&app, &caller, validated, repeat).await?;
    answer::images(&app, &caller, response_format, &task).await
}

/// Submits the task and returns 202 with its id.
pub(in crate::http) async fn generate_async(
    State(app): State<App>,
    Admitted(caller): Admitted,
    request: Request,
) -> Result<Response, ApiError> {
    let repeat = repeat(request.headers())?;
    app.storage.usable()?;
    let validated = read::read(&app, &caller, request).await?;
    let (Submitted::New(id) | Submitted::Joined(id)) =
        submit(&app, &caller, validated, repeat, ids::row_id(), Mode::Async).await?;
    Ok(answer::ticket(&app, id))
}

async fn submit_and_wait(
    app: &App,
    caller: &Arc<Caller>,
    validated: ValidatedRequest,
    repeat: Repeat,
) -> Result<Arc<Summary>, ApiError> {
    let id = ids::row_id();
    let all_max = app.config.server.sync_waiters_max();
    let own_max = app.config.tasks.account_sync_waiters_max;
    let _waits = app
        .sync_waiters
        .enter(caller.account_id, own_max, all_max)?;
    // Subscribe before the task can end.
    let mut subscription = app.waiters.subscribe(id);
    let task = match submit(app, caller, validated, repeat, id, Mode::Sync).await? {
        Submitted::New(id) => id,
        Submitted::Joined(earlier) => {
            subscription = app.waiters.subscribe(earlier);
            app.waiters.look_at(&app.pool, &[earlier]).await?;
            earlier
        }
    };
    let longest = app.config.tasks.deadline() + END_GRACE;
    match subscription.ended(longest).await {
        Waited::Ended(task) => Ok(task),
        Waited::Dismissed => Err(shutting_down()),
        Waited::TooLong => Err(ApiError::unknown_end(task)),
    }
}

async fn submit(
    app: &App,
    caller: &Arc<Caller>,
    validated: ValidatedRequest,
    repeat: Repeat,
    id: TaskId,
    mode: Mode,
) -> Result<Submitted, ApiError> {
    // With a shared database, another replica can run the task; a private database stops with this process.
    if app.shutdown.has_begun() && app.config.database.url.is_none() {
        return Err(shutting_down());
    }
    let ValidatedRequest {
        request,
        inputs,
        unit_price,
        ..
    } = validated;
    let slot = free_slot(app, &request);
    let queued = match &slot {
        Some(_) => None,
        None => Some(admission::enqueue(app, caller.account_id, &request, mode)?),
    };
    let caller = Arc::clone(caller);
    let submission = Submission {
        id,
        caller,
        request,
        inputs,
        unit_price,
        repeat,
        slot,
    };
    let submitted = app.submitter.call(submission).await;
    let submitted = submitted.map_err(|closed| ApiError::unavailable(&closed.to_string(), 1))?;
    if let (Some(line), false) = (queued, matches!(submitted, Ok(Submitted::New(_)))) {
        app.backlog.remove(&line);
    }
    Ok(submitted?)
}

fn shutting_down() -> ApiError {
    ApiError::unavailable("the gateway is shutting down", 1)
}

/// A slot, if the task can start at once: a slot is free, no task is queued, the model has no limit for the queue
/// to enforce, and the circuit of at least one route is closed.
fn free_slot(app: &App, request: &tasks::Request) -> Option<Slot> {
    if app.shutdown.has_begun() {
        return None;
    }
    let catalog = app.catalog();
    let model = catalog.model(&request.model)?;
    if model.is_limited() || app.backlogged.load(Ordering::Relaxed) {
        return None;
    }
    let permit = Arc::clone(&app.slots).try_acquire_owned().ok()?;
    let route = dispatch::route_at_once(model, request)?;
    Some(Slot { permit, route })
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
