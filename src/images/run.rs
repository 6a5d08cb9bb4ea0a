//! Drawing a claimed task: its references are made ready, the backend draws, the pictures are stored.
//! No connection to the database is held meanwhile.

use std::error::Error;

use super::{
    inputs::{self, Inputs},
    sink::StorageSink,
};
use crate::{
    app::App,
    backend::{BackendError, Drawing, SinkError},
    config,
    tasks::{Failure, FailureKind, Outcome, Task},
};

/// Draws a task, within its deadline. What was delivered before something failed counts.
pub async fn run(app: &App, task: &Task) -> Outcome {
    let mut sink = StorageSink::new(&app.storage, task, app.image_limits());
    let drawn = tokio::time::timeout(task.left, draw(app, task, &mut sink)).await;
    let mut images = sink.into_images();
    images.truncate(usize::from(task.request.n));
    let failure = match drawn {
        Ok(Ok(())) => failed(
            FailureKind::Upstream,
            "the upstream answered without an image",
        ),
        Ok(Err(failure)) => failure,
        Err(_) => failed(FailureKind::Deadline, "the task ran past its deadline"),
    };
    if images.is_empty() {
        Outcome::Failed(failure)
    } else {
        Outcome::Completed(images)
    }
}

async fn draw(app: &App, task: &Task, sink: &mut StorageSink<'_>) -> Result<(), Failure> {
    let request = &task.request;
    let gone = || failed(FailureKind::Internal, "the model is no longer configured");
    let model = app.config.models.get(&request.model).ok_or_else(gone)?;
    let route = model.routes.first().ok_or_else(gone)?;
    let backend = app.backends.get(&route.backend).ok_or_else(gone)?;
    let drawing = drawing(app, task, route).await?;
    backend
        .draw(&drawing, sink)
        .await
        .map_err(|error| failure(task, &route.backend, &error))
}

async fn drawing(app: &App, task: &Task, route: &config::Route) -> Result<Drawing, Failure> {
    let request = &task.request;
    let Inputs { references, mask } = inputs::open_all(app, task).await?;
    let upstream_model = if route.upstream_model.is_empty() {
        &request.model
    } else {
        &route.upstream_model
    };
    Ok(Drawing {
        model: upstream_model.clone(),
        prompt: request.prompt.clone(),
        n: request.n,
        ratio: request.ratio,
        resolution: request.resolution,
        size: request.size,
        quality: route.forward_quality.then_some(request.quality),
        references,
        mask,
        options: request.options.clone(),
        extra: route.extra.clone(),
        job: None,
    })
}

/// What the client is told, and what the operator: causes go to the log only.
fn failure(task: &Task, backend: &str, error: &BackendError) -> Failure {
    tracing::warn!(task.id = %task.id, backend, error = error as &dyn Error, "an upstream did not draw");
    match error {
        BackendError::Refused { message } => failed(FailureKind::Moderation, message),
        BackendError::Invalid { message } => failed(FailureKind::Request, message),
        BackendError::Credentials { .. } => failed(
            FailureKind::Upstream,
            "the upstream cannot be used at present",
        ),
        BackendError::RateLimited { .. } => failed(
            FailureKind::Upstream,
            "the upstream is overloaded at present",
        ),
        BackendError::Unreachable { .. } => {
            failed(FailureKind::Upstream, "the upstream could not be reached")
        }
        BackendError::Failed { .. } | BackendError::Silent { .. } => {
            failed(FailureKind::Upstream, "the upstream failed")
        }
        BackendError::NoImage { .. } | BackendError::Sink(SinkError::NotAnImage(_)) => failed(
            FailureKind::Upstream,
            "the upstream answered without a usable image",
        ),
        BackendError::Sink(SinkError::Storage(_) | SinkError::Job(_)) => {
            failed(FailureKind::Internal, "the image could not be stored")
        }
        BackendError::Input(_) => failed(FailureKind::Internal, "a reference could not be read"),
    }
}

fn failed(kind: FailureKind, message: &str) -> Failure {
    Failure {
        kind,
        message: message.to_owned(),
    }
}
