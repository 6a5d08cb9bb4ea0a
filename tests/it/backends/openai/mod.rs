//! The `openai` backend against a fake of its upstream.

mod answers;
mod errors;
mod fake;
mod profiles;
mod requests;

use std::sync::Arc;

use easel::backend::{Backend, BackendError, GenerateRequest};
use serde_json::{Map, Value};

use super::{Collected, backend_of, input, request};
use crate::harness::upstream::Upstream;

/// A backend for `upstream`, with `more` added to its address and key.
fn backend(upstream: &Upstream, more: &str) -> Arc<dyn Backend> {
    backend_of(&upstream.settings(more))
}

async fn generate(
    backend: &Arc<dyn Backend>,
    request: &GenerateRequest,
) -> (Vec<Vec<u8>>, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let result = backend.generate(request, &mut collected).await;
    (collected.images, result)
}

fn options(options: Value) -> Map<String, Value> {
    match options {
        Value::Object(options) => options,
        other => panic!("no object: {other}"),
    }
}
