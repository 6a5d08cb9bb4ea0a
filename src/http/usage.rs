//! `GET /v1/usage`: what tasks came to, newest first.

use axum::{extract::State, response::Response};

use super::{
    error::ApiError,
    extract::{Authenticated, Query},
    images,
    page::Page,
};
use crate::{
    app::App,
    images::usage::{self, Record},
};

pub(super) async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(page): Query<Page>,
) -> Result<Response, ApiError> {
    let (after, limit) = (page.after("usage record")?, page.limit()?);
    let mut conn = app.pool.acquire().await?;
    let rows = usage::page(&mut conn, caller.account_id, after, limit.and_one()).await?;
    drop(conn);
    let id = |(task, _): &usage::Row| task.id.to_string();
    Ok(limit.list(rows, id, |(task, key)| {
        let links = (1..=task.images().len()).filter_map(|seq| images::link(&app, task, seq));
        Record::new(task, key, links.collect())
    }))
}
