//! Whatever crashes, hangs up or is unreachable: an accepted task ends once, and is charged once.

mod failures;
mod killed;
mod leases;
mod lost_images;
mod shutdown;

use serde_json::{Value, json};

use crate::harness::{
    caller::{Answer, Caller},
    upstream::Upstream,
};

/// Settings that generate `gpt-image-2` with a fake upstream; `more` is appended.
fn generated_by(upstream: &Upstream, more: &str) -> String {
    let backend = upstream.settings("");
    format!("{more}\n[backends.up]\n{backend}[models.gpt-image-2]\nroutes = [\"up\"]\n")
}

/// An async request.
async fn submit(caller: &Caller, prompt: &str) -> Answer {
    let body = json!({"model": "gpt-image-2", "prompt": prompt});
    caller.post("/v1/images/generations?async=1", &body).await
}

/// An async request that must be accepted: the id of its task.
async fn accepted(caller: &Caller, prompt: &str) -> String {
    let answer = submit(caller, prompt).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["task_id"].as_str().unwrap().to_owned()
}

/// The balance; asserts that nothing is held.
async fn left(caller: &Caller) -> Value {
    let balance = caller.balance().await;
    assert_eq!(balance["held"], 0.0, "{balance}");
    balance["balance"].clone()
}
