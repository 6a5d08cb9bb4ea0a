//! What may be drawn, by what, and at what price: the models with their routes. Replaced as a whole when
//! the configuration is read again; what is known of backends whose settings stay the same goes over.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Backend, Registry, RegistryError,
    breaker::{Breaker, Circuit},
    pace::Pace,
};
use crate::config::{self, Config};

pub use super::choice::{Ask, Pick};

/// The models in force, and the backends they are drawn by.
pub struct Catalog {
    models: BTreeMap<String, Model>,
    /// Of each alias, the model's name.
    aliases: BTreeMap<String, String>,
    records: BTreeMap<String, Record>,
    pub routing: config::Routing,
}

/// What is known of a backend.
#[derive(Clone)]
struct Record {
    /// Of the settings under which it was learned.
    fingerprint: [u8; 32],
    breaker: Arc<Breaker>,
    /// By the upstream's name of the model.
    paces: BTreeMap<String, Arc<Pace>>,
}

/// A model that clients may ask for.
pub struct Model {
    pub name: String,
    pub settings: config::Model,
    routes: Vec<Route>,
}

/// One way to have a model drawn.
pub struct Route {
    /// Within its model: the backend's name, and the upstream's model where that is not the same.
    pub name: String,
    /// The upstream's name of the model.
    pub upstream_model: String,
    pub settings: config::Route,
    pub backend: Arc<dyn Backend>,
    pub breaker: Arc<Breaker>,
    pub pace: Arc<Pace>,
}

/// More than there can be references.
const WITH_MASK: i16 = 100;

/// What a task asks of whoever draws it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Needs {
    pub references: usize,
    pub mask: bool,
}

impl Needs {
    /// As the column `needs` of a task has them.
    pub fn of_column(needs: i16) -> Self {
        Self {
            references: usize::try_from(needs % WITH_MASK).unwrap_or_default(),
            mask: needs >= WITH_MASK,
        }
    }

    pub fn column(self) -> i16 {
        let references = i16::try_from(self.references).unwrap_or(WITH_MASK - 1);
        references.min(WITH_MASK - 1) + if self.mask { WITH_MASK } else { 0 }
    }
}

impl Catalog {
    /// The catalog of a configuration. `before` is the one it takes the place of.
    pub fn open(config: &Config, before: Option<&Self>) -> Result<Self, RegistryError> {
        let backends = Registry::open(&config.backends)?;
        let mut records: BTreeMap<String, Record> = config
            .backends
            .keys()
            .map(|name| (name.clone(), Record::open(name, config, before)))
            .collect();
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
            records,
            routing: config.routing.clone(),
        })
    }

    /// By its name, or an alias.
    pub fn model(&self, name: &str) -> Option<&Model> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.models.get(name)
    }

    /// All models by their names.
    pub fn models(&self) -> impl ExactSizeIterator<Item = &Model> {
        self.models.values()
    }

    /// Each backend by its name, and how its circuit stands.
    pub fn circuits(&self) -> impl Iterator<Item = (&str, Circuit)> {
        let records = self.records.iter();
        records.map(|(name, record)| (name.as_str(), record.breaker.circuit()))
    }
}

impl Record {
    fn open(name: &str, config: &Config, before: Option<&Catalog>) -> Self {
        let fingerprint = config.backend_fingerprint(name);
        let known = before.and_then(|before| before.records.get(name));
        match known.filter(|record| record.fingerprint == fingerprint) {
            Some(record) => record.clone(),
            None => Self {
                fingerprint,
                breaker: Arc::new(Breaker::new(name, config.routing.clone())),
                paces: BTreeMap::new(),
            },
        }
    }

    fn pace(&mut self, upstream_model: &str, deadline: Duration) -> Arc<Pace> {
        let pace = self.paces.entry(upstream_model.to_owned());
        Arc::clone(pace.or_insert_with(|| Arc::new(Pace::new(deadline))))
    }
}

impl Model {
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    pub fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }

    /// Whether some route makes something of the client's parameter of this name.
    pub fn reads_option(&self, name: &str) -> bool {
        self.routes
            .iter()
            .any(|route| route.backend.reads_option(name))
    }

    /// Whether some route draws only so much at once.
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

    /// How many more tasks may be begun over it, where `running` are under way: by its limit, and by its
    /// circuit. `None`: any number.
    pub fn capacity(&self, running: u32) -> Option<u32> {
        let max = self.settings.max_concurrency;
        let free = (max > 0).then(|| max.saturating_sub(running));
        match (free, self.breaker.capacity()) {
            (Some(free), Some(let_through)) => Some(free.min(let_through)),
            (free, let_through) => free.or(let_through),
        }
    }

    /// Whether it takes what comes along.
    pub fn can(&self, needs: Needs) -> bool {
        let abilities = self.backend.abilities();
        needs.references <= abilities.references_max && (abilities.mask || !needs.mask)
    }
}
