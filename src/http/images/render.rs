//! Tasks and their images as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    app::App,
    http::error::{ApiError, ErrorBody},
    images::links,
    money::Cny,
    tasks::{Outcome, Status, Summary},
};

/// A task in the format of polls and lists.
#[derive(Debug, Serialize)]
pub(super) struct TaskObject {
    id: String,
    task_id: String,
    object: &'static str,
    status: &'static str,
    model: String,
    created: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Cny>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fail_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl TaskObject {
    /// Renders a task; a failed one includes the error that a synchronous request would get.
    pub(super) fn new(app: &App, task: &Summary) -> Self {
        let links = links::results(task, &app.public_url);
        let error = error_body(task);
        Self {
            id: task.id.to_string(),
            task_id: task.id.to_string(),
            object: "image.task",
            status: match task.status {
                Status::Queued | Status::Running => "pending",
                Status::Completed => "completed",
                Status::Failed => "failed",
            },
            model: task.model.clone(),
            created: task.created_at.timestamp(),
            completed: task.end.as_ref().map(|end| end.at.timestamp()),
            cost: task.end.as_ref().map(|end| end.cost),
            result_url: links.first().cloned(),
            url: links.first().cloned(),
            data: links.into_iter().map(|url| json!({ "url": url })).collect(),
            fail_reason: error.as_ref().map(|error| error.message.clone()),
            error: error.map(|f| json!({ "type": f.kind, "code": f.code, "message": f.message })),
        }
    }
}

fn error_body(task: &Summary) -> Option<ErrorBody> {
    match &task.end.as_ref()?.outcome {
        Outcome::Completed(_) => None,
        Outcome::Failed(failure) => Some(ApiError::from(failure).body().clone()),
    }
}
