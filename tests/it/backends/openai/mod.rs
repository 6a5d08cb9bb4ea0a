//! The `openai` backend against a stand-in for its upstream.

mod answers;
mod errors;
mod profiles;
mod requests;
mod stand_in;

use std::sync::Arc;

use easel::backend::{Backend, BackendError, Drawing};
use serde_json::{Map, Value};

use super::{Collected, backend_of, drawing, input};
use crate::harness::upstream::Upstream;

/// The backend for `upstream`, with more settings beside its address and key.
fn backend(upstream: &Upstream, more: &str) -> Arc<dyn Backend> {
    backend_of(&upstream.settings(more))
}

async fn draw(
    backend: &Arc<dyn Backend>,
    drawing: &Drawing,
) -> (Vec<Vec<u8>>, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let drawn = backend.draw(drawing, &mut collected).await;
    (collected.pictures, drawn)
}

fn options(options: Value) -> Map<String, Value> {
    match options {
        Value::Object(options) => options,
        other => panic!("no object: {other}"),
    }
}
