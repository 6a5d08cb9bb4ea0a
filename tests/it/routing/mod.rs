//! Several routes for one model: which is used, which is next, and what it costs.

mod circuits;
mod failover;
mod queue;
mod reload;
mod retries;
mod shedding;
mod unknown_models;

use serde_json::{Value, json};

use crate::harness::{caller::Caller, database::TestDatabase, upstream::Upstream};

/// Settings that generate `gpt-image-2` over these routes, with backends of these names.
fn routed(upstreams: &[(&str, &Upstream)], routes: &str, more: &str) -> String {
    let backend = |(name, upstream): &(&str, &Upstream)| {
        format!("[backends.{name}]\n{}", upstream.settings(""))
    };
    let backends = upstreams.iter().map(backend).collect::<Vec<_>>().concat();
    format!("{more}\n{backends}[models.gpt-image-2]\naliases = [\"best\"]\nroutes = [{routes}]\n")
}

/// The task id of an async request.
async fn submitted(caller: &Caller, prompt: &str) -> String {
    let body = json!({"model": "gpt-image-2", "prompt": prompt});
    caller.submit(&body).await
}

/// The stored attempts of the only task: route and failure class of each.
async fn attempts(database: &TestDatabase) -> Vec<(String, Option<String>)> {
    let mut conn = database.connect().await;
    let tried: Value = sqlx::query_scalar("SELECT tried FROM tasks")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let attempts = tried.as_array().unwrap().iter();
    attempts
        .map(|attempt| {
            assert!(attempt["duration_ms"].is_u64(), "{attempt}");
            let text = |field: &str| attempt[field].as_str().map(str::to_owned);
            (text("route").unwrap(), text("class"))
        })
        .collect()
}

fn tried(attempts: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    let owned = |text: &str| text.to_owned();
    attempts
        .iter()
        .map(|(route, class)| (owned(route), class.map(owned)))
        .collect()
}
