//! `GET /v1/usage`: ended tasks and what they cost, newest first.

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

/// One page of the account's usage records.
pub(super) async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(page): Query<Page>,
) -> Result<Response, ApiError> {
    let (after, limit) = (page.after("usage record")?, page.limit()?);
    let rows = async {
        let mut conn = app.pool.acquire().await?;
        let always = (None, None);
        store::list_ended(&mut conn, caller.account_id, always, after, limit.and_one()).await
    };
    let rows = app.pool.in_time(rows).await?;
    let id = |(task, _): &(Summary, String)| task.id.to_string();
    Ok(limit.list(rows, id, |(task, key)| {
        Record::new(task, key, &app.public_url)
    }))
}
