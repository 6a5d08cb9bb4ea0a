//! `GET /healthz` and `/readyz`, for load balancers and orchestrators.

use std::time::Duration;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{error::ApiError, extract::Query, page};
use crate::app::App;

const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_AFTER_S: u32 = 2;

/// The process answers.
pub(super) async fn live() -> Response {
    page::json(&json!({ "status": "ok" }))
}

#[derive(Deserialize)]
pub(super) struct Detail {
    verbose: Option<String>,
}

/// It can do its work: the database and storage answer, and no shutdown has begun. `?verbose` tells how
/// the backends fare, too.
pub(super) async fn ready(
    State(app): State<App>,
    Query(detail): Query<Detail>,
) -> Result<Response, ApiError> {
    let not_ready = |what: &str| ApiError::unavailable(what, RETRY_AFTER_S);
    if app.shutdown.has_begun() {
        return Err(not_ready("the gateway is shutting down"));
    }
    app.storage.usable()?;
    let checks = async {
        sqlx::Connection::ping(&mut *app.pool.acquire().await.ok().ok_or("database")?)
            .await
            .ok()
            .ok_or("database")?;
        app.storage.check().await.ok().ok_or("storage")
    };
    match tokio::time::timeout(CHECK_TIMEOUT, checks).await {
        Ok(Ok(())) if detail.verbose.is_some() => Ok(page::json(&verbose(&app))),
        Ok(Ok(())) => Ok(page::json(&json!({ "status": "ok" }))),
        Ok(Err(what)) => Err(not_ready(&format!("the {what} cannot be reached"))),
        Err(_) => Err(not_ready("the database or storage does not answer")),
    }
}

fn verbose(app: &App) -> Value {
    let catalog = app.catalog();
    let state = |resting| if resting { "resting" } else { "in_use" };
    let backends: Map<String, Value> = catalog
        .resting()
        .map(|(name, resting)| (name.to_owned(), state(resting).into()))
        .collect();
    let storage = if app.storage.usable().is_err() {
        "failing"
    } else {
        "ok"
    };
    json!({ "status": "ok", "storage": storage, "backends": backends })
}
