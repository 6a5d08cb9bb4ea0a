//! `GET /v1/models`: what may be asked for, and what it costs.

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    error::ApiError,
    extract::{Authenticated, Segment},
    page,
};
use crate::{app::App, config};

/// Models have no birthday here; OpenAI's clients want a number.
const CREATED: i64 = 1_767_225_600;

pub(super) async fn list(State(app): State<App>, _: Authenticated) -> Response {
    let models = &app.config.models;
    let data: Vec<Value> = models
        .iter()
        .map(|(name, model)| object(name, model))
        .collect();
    page::json(&json!({
        "object": "list",
        "data": data,
        "first_id": models.keys().next(),
        "last_id": models.keys().next_back(),
        "has_more": false,
    }))
}

pub(super) async fn get(
    State(app): State<App>,
    _: Authenticated,
    Segment(name): Segment,
) -> Result<Response, ApiError> {
    let model = app
        .config
        .models
        .get(&name)
        .ok_or_else(|| ApiError::not_found("model"))?;
    Ok(page::json(&object(&name, model)))
}

fn object(name: &str, model: &config::Model) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": model.owned_by,
        "pricing": {
            "currency": "CNY",
            "low": model.price_low,
            "medium": model.price_medium,
            "high": model.price_high,
        },
    })
}
