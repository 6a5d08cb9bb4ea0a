//! `GET /v1/images/tasks` and `/v1/images/tasks/{id}`.

use axum::{extract::State, response::Response};

use super::render::TaskObject;
use crate::{
    app::App,
    http::{
        error::ApiError,
        extract::{Authenticated, Query, Segment},
        page::{self, Page},
    },
    tasks::{Summary, store},
};

/// One task; 404 if it is another account's.
pub(in crate::http) async fn get(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("task");
    let id = id.parse().ok().ok_or_else(&missing)?;
    let found = app.poller.call(id).await;
    let task = found
        .map_err(|closed| ApiError::unavailable(&closed.to_string(), 1))?
        .map_err(|error| ApiError::from(&*error))?
        .filter(|task| task.account_id == caller.account_id)
        .ok_or_else(missing)?;
    Ok(page::json(&TaskObject::new(&app, &task)))
}

/// The account's tasks, newest first.
pub(in crate::http) async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(page): Query<Page>,
) -> Result<Response, ApiError> {
    let (after, limit) = (page.after("task")?, page.limit()?);
    let tasks = async {
        let mut conn = app.pool.acquire().await?;
        store::list(&mut conn, caller.account_id, after, limit.and_one()).await
    };
    let tasks = app.pool.in_time(tasks).await?;
    let id = |task: &Summary| task.id.to_string();
    Ok(limit.list(tasks, id, |task| TaskObject::new(&app, task)))
}
