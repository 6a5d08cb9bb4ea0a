//! What a generation may request, field by field, and how its images are answered.

mod bodies;
mod fields;
mod files;
mod references;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{TestApp, caller::Caller};

/// Accepted tasks fail at once, without an image and without cost.
const FAILING: &str = "[backends.demo]\nkind = 'demo'\nfailure_percent = 100";

/// Like [`FAILING`], with a second route whose backend reads some of the client's options.
const READING: &str = "
    [backends]
    demo = { kind = 'demo', failure_percent = 100 }
    real = { kind = 'openai', base_url = 'http://127.0.0.1:1/v1', api_key = 'k', forward = ['background', 'output_compression',
        'seed', 'user', 'x', 'model'] }
    [models.gpt-image-2]
    routes = ['demo', { backend = 'real', priority = 1 }]
    [tasks]
    attempts_max = 1";

/// A valid request with other fields added.
fn body(fields: Value) -> Value {
    let mut body = json!({"model": "gpt-image-2", "prompt": "a cat"});
    let Value::Object(fields) = fields else {
        panic!("{fields}")
    };
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// The stored request of a task, as the gateway understood it.
async fn understood(app: &TestApp, task: &str) -> Value {
    let id: Uuid = task.parse().unwrap();
    sqlx::query_scalar("SELECT request FROM tasks WHERE id = $1")
        .bind(id)
        .fetch_one(&*app.app.pool)
        .await
        .unwrap()
}

/// Like [`understood`], for a request that is sent now.
async fn accepted(app: &TestApp, caller: &Caller, fields: Value) -> Value {
    let task = caller.submit(&body(fields)).await;
    understood(app, &task).await
}
