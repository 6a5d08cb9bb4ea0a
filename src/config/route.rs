//! One route of a model: the backend, its model name and its share of the work.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Table;

/// The key that every route needs; the others have defaults.
const BACKEND: &str = "backend";

/// A route with all its keys: see [`complete`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "the name of a backend, or a table with it"
)]
pub struct Route {
    /// The name of the backend.
    pub backend: String,
    /// Empty: the model's own name.
    pub upstream_model: String,
    /// Its share of the tasks among the routes of the same priority.
    pub weight: u32,
    /// The lowest is used first; others only while none of its routes is available.
    pub priority: u32,
    /// Maximum tasks at once on this route, over all replicas. 0: unlimited.
    pub max_concurrency: u32,
    timeout_ms: u32,
    /// Whether to send the client's quality.
    pub forward_quality: bool,
    /// Additional fields to send. They override all others.
    pub extra: Map<String, Value>,
}

impl Route {
    /// Time limit of one call, from the request to the last byte.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.into())
    }

    /// Its numbers, by their keys.
    pub(super) fn numbers(&self) -> [(&'static str, u32); 4] {
        [
            ("weight", self.weight),
            ("priority", self.priority),
            ("max_concurrency", self.max_concurrency),
            ("timeout_ms", self.timeout_ms),
        ]
    }
}

/// Adds the keys that routes omit, from the first of the default routes. A route may be the name of its backend alone.
pub(super) fn complete(routes: &mut toml::Value, defaults: &toml::Value) {
    let defaults = defaults.get(0).and_then(toml::Value::as_table);
    for route in routes.as_array_mut().into_iter().flatten() {
        if route.is_str() {
            *route = Table::from_iter([(BACKEND.to_owned(), route.clone())]).into();
        }
        // Anything else is refused when the routes are parsed.
        let Some(route) = route.as_table_mut() else {
            continue;
        };
        for (key, default) in defaults.into_iter().flatten() {
            if key != BACKEND {
                route.entry(key).or_insert_with(|| default.clone());
            }
        }
    }
}
