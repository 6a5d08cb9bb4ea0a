//! `GET /v1/usage`: what tasks came to, newest first.

use axum::{extract::State, response::Response};

use super::{
    error::ApiError,
    extract::{Authenticated, Query},
    page::Page,
};
use crate::{
    app::App,
    images::usage::Record,
    tasks::{Summary, store},
};

pub(super) async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(page): Query<Page>,
) -> Result<Response, ApiError> {
    let (after, limit) = (page.after("usage record")?, page.limit()?);
    let mut conn = app.pool.acquire().await?;
    let rows = store::list_ended(
        &mut conn,
        caller.account_id,
        (None, None),
        after,
        limit.and_one(),
    )
    .await?;
    drop(conn);
    let id = |(task, _): &(Summary, String)| task.id.to_string();
    Ok(limit.list(rows, id, |(task, key)| {
        Record::new(task, key, &app.public_url)
    }))
}
