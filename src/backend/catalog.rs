//! The models, with their routes and prices. The whole catalog is replaced when the configuration is reloaded;
//! backends whose settings did not change keep their connections and, unless `[routing]` changed, their circuit and
//! durations.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Backend, Registry, RegistryError,
    breaker::{Breaker, Circuit},
    pace::Pace,
};
use crate::config::{self, Config};

/// The current models, and the backends that generate them.
pub struct Catalog {
    models: BTreeMap<String, Model>,
    /// Maps each alias to the model's name.
    aliases: BTreeMap<String, String>,
    backends: Registry,
    /// Of the backends' settings.
    fingerprints: BTreeMap<String, [u8; 32]>,
    records: BTreeMap<String, Record>,
    /// The `[routing]` settings.
    pub routing: config::Routing,
}

/// What was learned about a backend.
#[derive(Clone)]
struct Record {
    breaker: Arc<Breaker>,
    /// By the upstream's name for the model.
    paces: BTreeMap<String, Arc<Pace>>,
}

/// A model that clients may ask for.
pub struct Model {
    /// The name, under which clients request it.
    pub name: String,
    /// The model's settings.
    pub settings: config::Model,
    routes: Vec<Route>,
}

/// One way to generate a model's images.
pub struct Route {
    /// Unique within its model: the backend's name, plus the upstream's model if it is named differently.
    pub name: String,
    /// The upstream's name for the model.
    pub upstream_model: String,
    /// The route's settings.
    pub settings: config::Route,
    /// The backend that makes the calls.
    pub backend: Arc<dyn Backend>,
    /// The backend's circuit, shared by all its routes.
    pub breaker: Arc<Breaker>,
    /// The durations of the route's latest attempts.
    pub pace: Arc<Pace>,
}

/// Added to the column's value for a mask; more than the largest number of references.
const WITH_MASK: i16 = 100;

/// What a task requires of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Requirements {
    /// The number of references.
    pub references: usize,
    /// Whether there is a mask.
    pub mask: bool,
}

impl Requirements {
    /// Decodes the value of the tasks' column `requirements`.
    pub fn of_column(requirements: i16) -> Self {
        Self {
            references: (requirements % WITH_MASK).unsigned_abs().into(),
            mask: requirements >= WITH_MASK,
        }
    }

    /// Encodes the value of the tasks' column `requirements`.
    pub fn column(self) -> i16 {
        // Saturates: the API allows at most 16, and no route accepts more.
        let most = WITH_MASK - 1;
        let references = i16::try_from(self.references).map_or(most, |n| n.min(most));
        references + if self.mask { WITH_MASK } else { 0 }
    }
}

impl Catalog {
    /// Opens the catalog of a configuration. `before` is the catalog that it replaces.
    pub fn open(config: &Config, before: Option<&Self>) -> Result<Self, RegistryError> {
        let fingerprints = config.backend_fingerprints();
        let with_same = |name: &str| {
            before.filter(|before| before.fingerprints.get(name) == fingerprints.get(name))
        };
        let client = |name: &str| with_same(name)?.backends.client(name);
        let backends = Registry::reopen(&config.backends, client)?;
        let record = |name: &String| {
            let before = with_same(name).filter(|before| before.routing == config.routing);
            let known = before.and_then(|before| before.records.get(name).cloned());
            let record = known.unwrap_or_else(|| Record::new(name, &config.routing));
            (name.clone(), record)
        };
        let mut records: BTreeMap<String, Record> = config.backends.keys().map(record).collect();
        let mut models = BTreeMap::new();
        for (name, settings) in &config.models {
            let mut routes = Vec::with_capacity(settings.routes.len());
            for route in &settings.routes {
                let known = (
                    backends.get(&route.backend),
                    records.get_mut(&route.backend),
                );
                if let (Some(backend), Some(record)) = known {
                    let deadline = config.tasks.deadline();
                    routes.push(Route::new(
                        name,
                        route,
                        Arc::clone(backend),
                        record,
                        deadline,
                    ));
                }
            }
            let model = Model {
                name: name.clone(),
                routes,
                settings: settings.clone(),
            };
            models.insert(name.clone(), model);
        }
        let aliases = config.models.iter().flat_map(|(name, model)| {
            let aliases = model.aliases.iter();
            aliases.map(|alias| (alias.clone(), name.clone()))
        });
        Ok(Self {
            models,
            aliases: aliases.collect(),
            backends,
            fingerprints: fingerprints.clone(),
            records,
            routing: config.routing.clone(),
        })
    }

    /// The model of this name or alias.
    pub fn model(&self, name: &str) -> Option<&Model> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.models.get(name)
    }

    /// All models, by name.
    pub fn models(&self) -> impl ExactSizeIterator<Item = &Model> {
        self.models.values()
    }

    /// Each backend's name and the state of its circuit.
    pub fn circuits(&self) -> impl Iterator<Item = (&str, Circuit)> {
        let records = self.records.iter();
        records.map(|(name, record)| (name.as_str(), record.breaker.circuit()))
    }
}

impl Record {
    fn new(name: &str, routing: &config::Routing) -> Self {
        Self {
            breaker: Arc::new(Breaker::new(name, routing.clone())),
            paces: BTreeMap::new(),
        }
    }

    fn pace(&mut self, upstream_model: &str, deadline: Duration) -> Arc<Pace> {
        let pace = self.paces.entry(upstream_model.to_owned());
        Arc::clone(pace.or_insert_with(|| Arc::new(Pace::new(deadline))))
    }
}

impl Model {
    /// All routes, in the order of the configuration.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route of this name.
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }

    /// Whether any route uses the client's parameter of this name.
    pub fn reads_option(&self, name: &str) -> bool {
        self.routes
            .iter()
            .any(|route| route.backend.reads_option(name))
    }

    /// Whether any route has a concurrency limit.
    pub fn is_limited(&self) -> bool {
        self.routes
            .iter()
            .any(|route| route.settings.max_concurrency > 0)
    }
}

impl Route {
    fn new(
        model: &str,
        settings: &config::Route,
        backend: Arc<dyn Backend>,
        record: &mut Record,
        deadline: Duration,
    ) -> Self {
        let own = &settings.upstream_model;
        let (name, upstream_model) = if own.is_empty() {
            (settings.backend.clone(), model)
        } else {
            (format!("{}/{own}", settings.backend), own.as_str())
        };
        Self {
            name,
            upstream_model: upstream_model.to_owned(),
            settings: settings.clone(),
            backend,
            breaker: Arc::clone(&record.breaker),
            pace: record.pace(upstream_model, deadline),
        }
    }

    /// How many more tasks may start on this route while `running` are running, by its limit and its circuit.
    /// `None` means any number.
    pub fn capacity(&self, running: u32) -> Option<u32> {
        let max = self.settings.max_concurrency;
        let free = (max > 0).then(|| max.saturating_sub(running));
        match (free, self.breaker.capacity()) {
            (Some(free), Some(let_through)) => Some(free.min(let_through)),
            (free, let_through) => free.or(let_through),
        }
    }

    /// Whether the backend accepts the task's references and mask.
    pub fn can(&self, requirements: Requirements) -> bool {
        let capabilities = self.backend.capabilities();
        requirements.references <= capabilities.references_max
            && (capabilities.mask || !requirements.mask)
    }
}
