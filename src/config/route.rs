//! One route of a model: the backend, its model name and its share of the work.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

/// Written as a table, or as the name of a backend alone.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Route {
    /// The name of the backend.
    pub backend: String,
    /// Empty: the model's own name.
    #[serde(default)]
    pub upstream_model: String,
    /// Its share of the tasks among the routes of the same priority.
    #[serde(default = "Route::default_weight")]
    pub weight: u32,
    /// The lowest is used first; others only while none of its routes is available.
    #[serde(default)]
    pub priority: u32,
    /// Maximum tasks at once on this route, over all replicas. 0: unlimited.
    #[serde(default)]
    pub max_concurrency: u32,
    #[serde(default = "Route::default_timeout_ms")]
    pub(super) timeout_ms: u64,
    /// Whether to send the client's quality.
    #[serde(default)]
    pub forward_quality: bool,
    /// Additional fields to send. They override all others.
    #[serde(default)]
    pub extra: Map<String, Value>,
}

impl Route {
    /// Time limit of one call, from the request to the last byte.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn to(backend: &str) -> Self {
        Self {
            backend: backend.to_owned(),
            upstream_model: String::new(),
            weight: Self::default_weight(),
            priority: 0,
            max_concurrency: 0,
            timeout_ms: Self::default_timeout_ms(),
            forward_quality: false,
            extra: Map::new(),
        }
    }

    fn default_weight() -> u32 {
        1
    }

    fn default_timeout_ms() -> u64 {
        600_000
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = Route;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a backend, or a table with it")
    }

    fn visit_str<E: Error>(self, backend: &str) -> Result<Route, E> {
        Ok(Route::to(backend))
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Route, A::Error> {
        Route::deserialize(MapAccessDeserializer::new(table))
    }
}
