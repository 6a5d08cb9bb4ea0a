//! Whatever dies, hangs up or stays away: what was accepted ends, once, and is charged once.

mod failures;
mod killed;
mod leases;
mod lost_images;
mod shutdown;

use serde_json::{Value, json};

use crate::harness::{
    caller::{Answer, Caller},
    upstream::{Gate, Reply, Upstream, picture},
};

/// Settings under which `gpt-image-2` is drawn by an upstream; `more` lies beside them.
fn drawn_by(upstream: &Upstream, more: &str) -> String {
    let backend = upstream.settings("");
    format!("{more}\n[backends.up]\n{backend}[models.gpt-image-2]\nroutes = [\"up\"]\n")
}

/// Has the next drawing answered when the gate lets it go: never, if it is not opened.
fn hold(upstream: &Upstream, gate: &Gate) {
    upstream.next(Reply::pictures(&[picture(3, 2, 0)]).held_by(gate));
}

/// A gate that is shut.
fn gate() -> Gate {
    Gate::new(tokio::sync::Semaphore::new(0))
}

/// A request that does not wait.
async fn submit(caller: &Caller, prompt: &str) -> Answer {
    let body = json!({"model": "gpt-image-2", "prompt": prompt});
    caller.post("/v1/images/generations?async=1", &body).await
}

/// The same, accepted: its task's id.
async fn accepted(caller: &Caller, prompt: &str) -> String {
    let answer = submit(caller, prompt).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["task_id"].as_str().unwrap().to_owned()
}

/// A request that waits, on a task of its own: it goes on while the test does other things.
#[expect(clippy::disallowed_methods, reason = "it may end with the test")]
fn waiting(caller: &Caller, prompt: &str) -> tokio::task::JoinHandle<Answer> {
    let (caller, prompt) = (caller.clone(), prompt.to_owned());
    tokio::spawn(async move { caller.draw(&prompt).await })
}

/// The balance, of which nothing is held.
async fn left(caller: &Caller) -> Value {
    let balance = caller.balance().await;
    assert_eq!(balance["held"], 0.0, "{balance}");
    balance["balance"].clone()
}
