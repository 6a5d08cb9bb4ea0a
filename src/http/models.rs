//! `GET /v1/models`: the configured models and their prices.

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    error::ApiError,
    extract::{Authenticated, Segment},
    page,
};
use crate::{app::App, backend::catalog::Model};

/// `created` of every model: Easel does not record one, but OpenAI's clients require a number.
const CREATED: i64 = 1_767_225_600;

/// All models, in one page.
pub(super) async fn list(State(app): State<App>, _: Authenticated) -> Response {
    let catalog = app.catalog();
    let data: Vec<Value> = catalog.models().map(object).collect();
    let mut names = catalog.models().map(|model| &model.name);
    page::json(&json!({
        "object": "list",
        "data": data,
        "first_id": names.next(),
        "last_id": catalog.models().last().map(|model| &model.name),
        "has_more": false,
    }))
}

/// One model; 404 if it is not configured.
pub(super) async fn get(
    State(app): State<App>,
    _: Authenticated,
    Segment(name): Segment,
) -> Result<Response, ApiError> {
    let catalog = app.catalog();
    let model = catalog.model(&name);
    let model = model.ok_or_else(|| ApiError::not_found("model"))?;
    Ok(page::json(&object(model)))
}

fn object(Model { name, settings, .. }: &Model) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": settings.owned_by,
        "pricing": {
            "currency": "CNY",
            "low": settings.price_low,
            "medium": settings.price_medium,
            "high": settings.price_high,
        },
    })
}
