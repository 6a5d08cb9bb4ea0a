//! `GET /healthz` and `/readyz`, for load balancers and orchestrators.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Extension, extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::timeout};

use super::{address, error::ApiError, extract::Query, page, server::Connection};
use crate::{app::App, storage::Trouble};

/// Timeout of the database check; the storage circuit has its own.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a result is reused. A check runs a query and writes an object, and anyone may request `/readyz`.
const CHECKED_FOR: Duration = Duration::from_secs(2);
const RETRY_AFTER_S: u32 = 2;

/// `Err` holds the reason why the gateway is not ready, for the operator.
type Outcome = Result<(), &'static str>;

/// The current or most recent check of the database and storage.
#[derive(Clone, Default)]
pub(super) struct Probe(Arc<Mutex<Option<Check>>>);

#[derive(Clone)]
struct Check {
    began: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The query of `/readyz`.
#[derive(Deserialize)]
pub(super) struct Detail {
    verbose: Option<String>,
}

/// `GET /healthz`: the process is alive.
pub(super) async fn live() -> Response {
    page::json(&json!({ "status": "ok" }))
}

/// `GET /readyz`: 503 if the gateway cannot work. Local requests with `?verbose` also get the backends' circuits.
pub(super) async fn ready(
    State(app): State<App>,
    Extension(probe): Extension<Probe>,
    connection: Option<Extension<Arc<Connection>>>,
    Query(detail): Query<Detail>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    is_ready(&app, &probe)
        .await
        .map_err(|why| ApiError::unavailable(why, RETRY_AFTER_S))?;
    let is_local = connection.is_some_and(|one| address::is_local(one.peer, &headers));
    if detail.verbose.is_some() && is_local {
        return Ok(page::json(&verbose(&app)));
    }
    Ok(page::json(&json!({ "status": "ok" })))
}

/// Checks all conditions of readiness; the first that fails gives the reason.
async fn is_ready(app: &App, probe: &Probe) -> Outcome {
    if app.shutdown.has_begun() {
        return Err("the gateway is shutting down");
    }
    if let Some(what) = app.progress.stalled() {
        return Err(what);
    }
    app.storage.usable().map_err(Trouble::message)?;
    probe.outcome(app).await
}

impl Probe {
    async fn outcome(&self, app: &App) -> Outcome {
        let mut outcome = self.check(app).outcome;
        let reported = outcome.wait_for(Option::is_some).await;
        let outcome = reported.ok().and_then(|outcome| *outcome);
        outcome.unwrap_or(Err("the gateway could not be checked"))
    }

    /// The check to use now; starts a new one if the last is complete and older than `CHECKED_FOR`. A check
    /// continues if the request that started it is dropped.
    fn check(&self, app: &App) -> Check {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(check) = &*last {
            let is_over = check.outcome.borrow().is_some() || check.outcome.has_changed().is_err();
            if !is_over || check.began.elapsed() < CHECKED_FOR {
                return check.clone();
            }
        }
        let (report, outcome) = watch::channel(None);
        let checking = app.clone();
        app.shutdown.spawn_background(async move {
            report.send_replace(Some(reach(&checking).await));
        });
        let check = Check {
            began: Instant::now(),
            outcome,
        };
        last.insert(check).clone()
    }
}

/// Checks that the database and storage respond.
async fn reach(app: &App) -> Outcome {
    let ping = async { sqlx::Connection::ping(&mut *app.pool.acquire().await?).await };
    let (database, storage) = tokio::join!(
        timeout(CHECK_TIMEOUT, app.pool.in_time(ping)),
        app.storage.check()
    );
    if !matches!(database, Ok(Ok(()))) {
        return Err("the database cannot be reached");
    }
    if let Err(error) = storage {
        let trouble = error.trouble().unwrap_or(Trouble::Unreachable);
        return Err(trouble.message());
    }
    Ok(())
}

fn verbose(app: &App) -> Value {
    let catalog = app.catalog();
    let backends: Map<String, Value> = catalog
        .circuits()
        .map(|(name, circuit)| (name.to_owned(), circuit.as_str().into()))
        .collect();
    let storage = if app.storage.usable().is_err() {
        "failing"
    } else {
        "ok"
    };
    json!({ "status": "ok", "storage": storage, "backends": backends })
}
