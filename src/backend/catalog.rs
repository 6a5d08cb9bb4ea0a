//! What may be drawn, by what, and at what price: the models with their routes. Replaced as a whole when
//! the configuration is read again.

use std::{collections::BTreeMap, sync::Arc};

use rand::{RngExt, distr::weighted::WeightedIndex};

use super::{Backend, Breaker, Registry, RegistryError};
use crate::{
    config::{self, Config},
    failure::Class,
};

/// The models in force, and the backends they are drawn by.
pub struct Catalog {
    models: BTreeMap<String, Model>,
    /// Of each alias, the model's name.
    aliases: BTreeMap<String, String>,
    breakers: BTreeMap<String, Arc<Breaker>>,
    pub routing: config::Routing,
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
}

/// What a task asks of whoever draws it.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    pub references: usize,
    pub mask: bool,
}

/// Who is to draw a task next.
pub enum Pick<'a> {
    Route(&'a Route),
    /// All that could are drawing as much as they may: wait.
    Full,
    /// Nobody, as things are.
    Nobody,
}

impl Catalog {
    pub fn open(config: &Config) -> Result<Self, RegistryError> {
        let backends = Registry::open(&config.backends)?;
        let breakers: BTreeMap<String, Arc<Breaker>> = config
            .backends
            .keys()
            .map(|name| {
                (
                    name.clone(),
                    Arc::new(Breaker::new(name, config.routing.clone())),
                )
            })
            .collect();
        let models = config.models.iter().map(|(name, settings)| {
            let routes = settings.routes.iter().filter_map(|route| {
                let backend = backends.get(&route.backend)?;
                let breaker = breakers.get(&route.backend)?;
                Some(Route::new(
                    name,
                    route,
                    Arc::clone(backend),
                    Arc::clone(breaker),
                ))
            });
            let model = Model {
                name: name.clone(),
                routes: routes.collect(),
                settings: settings.clone(),
            };
            (name.clone(), model)
        });
        let aliases = config.models.iter().flat_map(|(name, model)| {
            let aliases = model.aliases.iter();
            aliases.map(|alias| (alias.clone(), name.clone()))
        });
        Ok(Self {
            models: models.collect(),
            aliases: aliases.collect(),
            breakers,
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

    /// Each backend by its name, and whether it is left out for a while.
    pub fn resting(&self) -> impl Iterator<Item = (&str, bool)> {
        let breakers = self.breakers.iter();
        breakers.map(|(name, breaker)| (name.as_str(), breaker.is_resting()))
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

    /// Who draws next: of the routes that were not tried yet, else of those that may be tried again, one
    /// of the lowest priority that has room, by weight. Who is answered counts as asked.
    pub fn pick(
        &self,
        needs: Needs,
        tried: &[(&str, Class)],
        has_room: impl Fn(&Route) -> bool,
    ) -> Pick<'_> {
        let mut routes = self.usable(needs, tried);
        while !routes.is_empty() {
            let with_room = routes.iter().filter(|route| has_room(route));
            let Some(priority) = with_room.map(|route| route.settings.priority).min() else {
                return Pick::Full;
            };
            let among: Vec<&Route> = routes
                .iter()
                .copied()
                .filter(|route| route.settings.priority == priority && has_room(route))
                .collect();
            let chosen = by_weight(&among);
            if chosen.breaker.admit() {
                return Pick::Route(chosen);
            }
            routes.retain(|route| route.name != chosen.name);
        }
        Pick::Nobody
    }

    /// Whether there is a route that was not tried yet.
    pub fn has_other(&self, needs: Needs, tried: &[(&str, Class)]) -> bool {
        self.usable(needs, tried)
            .iter()
            .any(|route| route.is_fresh(tried))
    }

    fn usable(&self, needs: Needs, tried: &[(&str, Class)]) -> Vec<&Route> {
        let can = |route: &&Route| route.can(needs) && !route.breaker.is_resting();
        let usable: Vec<&Route> = self.routes.iter().filter(can).collect();
        let fresh = usable.iter().copied().filter(|route| route.is_fresh(tried));
        let fresh: Vec<&Route> = fresh.collect();
        if !fresh.is_empty() {
            return fresh;
        }
        let mut again = usable;
        again.retain(|route| !tried.contains(&(&route.name, Class::Credentials)));
        again
    }
}

impl Route {
    fn new(
        model: &str,
        settings: &config::Route,
        backend: Arc<dyn Backend>,
        breaker: Arc<Breaker>,
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
            breaker,
        }
    }

    /// How many more tasks it may draw, where `running` are under way; `None`: any number.
    pub fn room(&self, running: u32) -> Option<u32> {
        let max = self.settings.max_concurrency;
        (max > 0).then(|| max.saturating_sub(running))
    }

    fn can(&self, needs: Needs) -> bool {
        let abilities = self.backend.abilities();
        needs.references <= abilities.references_max && (abilities.mask || !needs.mask)
    }

    fn is_fresh(&self, tried: &[(&str, Class)]) -> bool {
        !tried.iter().any(|(name, _)| *name == self.name)
    }
}

fn by_weight<'a>(routes: &[&'a Route]) -> &'a Route {
    let weights = routes.iter().map(|route| route.settings.weight);
    let index = match WeightedIndex::new(weights) {
        Ok(weighted) => rand::rng().sample(weighted),
        // Weights are checked to be 1 or more, and one route there is.
        Err(_) => 0,
    };
    routes[index]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Sources;

    const NEEDS: Needs = Needs {
        references: 0,
        mask: false,
    };

    fn catalog(routes: &str) -> Catalog {
        let file = format!(
            "[backends]\na = {{ kind = 'demo' }}\nb = {{ kind = 'demo' }}\nc = {{ kind = 'demo' }}\n\
             [models.m]\naliases = ['best']\nroutes = [{routes}]\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("easel.toml");
        std::fs::write(&path, file).unwrap();
        let sources = Sources {
            file: Some(path),
            ..Sources::default()
        };
        Catalog::open(&Config::load(&sources).unwrap()).unwrap()
    }

    fn shares(model: &Model, tried: &[(&str, Class)]) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..1000 {
            let name = match model.pick(NEEDS, tried, |route| route.room(1) != Some(0)) {
                Pick::Route(route) => &route.name,
                Pick::Full => "full",
                Pick::Nobody => "nobody",
            };
            *shares.entry(name.to_owned()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn the_lowest_priority_comes_first_and_weights_share_it() {
        let catalog = catalog(
            "{ backend = 'a', weight = 3 }, { backend = 'b', upstream_model = 'x' }, \
             { backend = 'c', priority = 1 }",
        );
        let model = catalog.model("best").unwrap();
        assert_eq!(model.name, "m");
        let shared = shares(model, &[]);
        assert_eq!(shared.keys().collect::<Vec<_>>(), ["a", "b/x"]);
        assert!((650..850).contains(&shared["a"]), "{shared:?}");

        let tried = [("a", Class::Failed), ("b/x", Class::Failed)];
        assert_eq!(shares(model, &tried).keys().collect::<Vec<_>>(), ["c"]);
        let tried = [tried[0], tried[1], ("c", Class::Credentials)];
        let again = shares(model, &tried);
        assert_eq!(again.keys().collect::<Vec<_>>(), ["a", "b/x"]);
    }

    #[test]
    fn who_is_full_or_rests_is_passed_over() {
        let catalog = catalog(
            "{ backend = 'a', max_concurrency = 1 }, { backend = 'b', priority = 1, max_concurrency = 2 }",
        );
        let model = catalog.model("m").unwrap();
        assert!(model.is_limited());
        assert_eq!(shares(model, &[]).keys().collect::<Vec<_>>(), ["b"]);
        let b = model.route("b").unwrap();
        b.breaker.note(Some(Class::Credentials));
        assert_eq!(shares(model, &[]).keys().collect::<Vec<_>>(), ["full"]);
        model
            .route("a")
            .unwrap()
            .breaker
            .note(Some(Class::Credentials));
        assert_eq!(shares(model, &[]).keys().collect::<Vec<_>>(), ["nobody"]);
        let resting: Vec<_> = catalog.resting().collect();
        assert_eq!(resting, [("a", true), ("b", true)]);
    }

    #[test]
    fn who_cannot_take_what_comes_along_is_passed_over() {
        let catalog = catalog("'a'");
        let needs = Needs {
            references: 0,
            mask: true,
        };
        let model = catalog.model("m").unwrap();
        assert!(matches!(model.pick(needs, &[], |_| true), Pick::Nobody));
    }
}
