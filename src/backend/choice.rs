//! Chooses the route for a task.

use std::time::Duration;

use rand::{RngExt, distr::weighted::WeightedIndex};

use super::catalog::{Model, Requirements, Route};
use crate::failure::Class;

/// What the choice of a route depends on.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What the task requires of a route.
    pub requirements: Requirements,
    /// The routes tried so far, with the result of each attempt.
    pub tried: &'a [(&'a str, Class)],
    /// The time until the task's deadline.
    pub left: Duration,
}

/// The route chosen for a task, or why there is none.
pub enum Pick<'a> {
    /// Use this route.
    Route(&'a Route),
    /// Wait: every suitable route is full, has an open circuit or takes longer than the time left.
    AtCapacity,
    /// No route can ever take this task.
    NoRoute,
}

impl Model {
    /// Picks, by weight, among the routes of the lowest priority that have capacity: routes not tried yet first,
    /// else routes that may be retried. Acquires nothing.
    pub fn pick(&self, ask: Ask<'_>, capacity: impl Fn(&Route) -> Option<u32>) -> Pick<'_> {
        let candidates: Vec<&Route> = self.candidates(ask).collect();
        if candidates.is_empty() {
            return Pick::NoRoute;
        }
        // A task does not wait for an open circuit if a route tried before is usable; it does wait for a full route.
        let usable = candidates
            .into_iter()
            .filter(|route| route.pace.least() <= ask.left && route.breaker.capacity() != Some(0));
        let usable = fresh_or_all(usable.collect(), ask.tried);
        let free = usable
            .into_iter()
            .filter(|route| capacity(route) != Some(0));
        let mut free: Vec<&Route> = free.collect();
        let lowest = free.iter().map(|route| route.settings.priority).min();
        free.retain(|route| Some(route.settings.priority) == lowest);
        if free.is_empty() {
            return Pick::AtCapacity;
        }
        Pick::Route(by_weight(&free))
    }

    /// The routes that accept the task, except those where the upstream rejected our key.
    pub fn candidates<'a, 't>(
        &'a self,
        ask: Ask<'t>,
    ) -> impl Iterator<Item = &'a Route> + use<'a, 't> {
        self.routes().iter().filter(move |route| {
            route.can(ask.requirements) && !ask.tried.contains(&(&route.name, Class::Credentials))
        })
    }
}

fn fresh_or_all<'a>(routes: Vec<&'a Route>, tried: &[(&str, Class)]) -> Vec<&'a Route> {
    let fresh = routes.iter().copied().filter(|route| route.is_fresh(tried));
    let fresh: Vec<&Route> = fresh.collect();
    if fresh.is_empty() { routes } else { fresh }
}

impl Route {
    /// Whether the route was not tried yet.
    pub fn is_fresh(&self, tried: &[(&str, Class)]) -> bool {
        !tried.iter().any(|(name, _)| *name == self.name)
    }
}

fn by_weight<'a>(routes: &[&'a Route]) -> &'a Route {
    let weights = routes.iter().map(|route| route.settings.weight);
    let index = match WeightedIndex::new(weights) {
        Ok(weighted) => rand::rng().sample(weighted),
        // Weights are validated to be 1 or more, and there is at least one route.
        Err(_) => 0,
    };
    routes[index]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        backend::{Catalog, breaker::Circuit},
        config::{Config, Sources},
        ids::row_id,
    };

    const REQUIREMENTS: Requirements = Requirements {
        references: 0,
        mask: false,
    };

    fn catalog(routes: &str) -> Catalog {
        Catalog::open(&config(routes), None).unwrap()
    }

    fn config(routes: &str) -> Config {
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
        Config::load(&sources).unwrap()
    }

    fn ask<'a>(tried: &'a [(&'a str, Class)]) -> Ask<'a> {
        Ask {
            requirements: REQUIREMENTS,
            tried,
            left: Duration::from_mins(1),
        }
    }

    fn shares(model: &Model, ask: Ask<'_>) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..1000 {
            let name = match model.pick(ask, |route| route.capacity(1)) {
                Pick::Route(route) => &route.name,
                Pick::AtCapacity => "wait",
                Pick::NoRoute => "none",
            };
            *shares.entry(name.to_owned()).or_default() += 1;
        }
        shares
    }

    fn chosen(model: &Model, ask: Ask<'_>) -> Vec<String> {
        shares(model, ask).into_keys().collect()
    }

    fn open_circuit(route: &Route) {
        let permit = route.breaker.try_acquire(row_id()).unwrap();
        permit.record(Some(Class::Credentials));
    }

    #[test]
    fn the_lowest_priority_comes_first_and_weights_share_it() {
        let catalog = catalog(
            "{ backend = 'a', weight = 3 }, { backend = 'b', upstream_model = 'x' }, \
             { backend = 'c', priority = 1 }",
        );
        let model = catalog.model("best").unwrap();
        assert_eq!(model.name, "m");
        let shared = shares(model, ask(&[]));
        assert_eq!(shared.keys().collect::<Vec<_>>(), ["a", "b/x"]);
        assert!((650..850).contains(&shared["a"]), "{shared:?}");

        let tried = [("a", Class::Failed), ("b/x", Class::Failed)];
        assert_eq!(chosen(model, ask(&tried)), ["c"]);
        let tried = [tried[0], tried[1], ("c", Class::Credentials)];
        assert_eq!(chosen(model, ask(&tried)), ["a", "b/x"]);
        open_circuit(model.route("a").unwrap());
        assert_eq!(
            chosen(model, ask(&tried[1..])),
            ["b/x"],
            "a retry is better than waiting"
        );
    }

    #[test]
    fn full_routes_and_open_circuits_are_skipped_or_waited_for() {
        let catalog = catalog(
            "{ backend = 'a', max_concurrency = 1 }, { backend = 'b', priority = 1, max_concurrency = 2 }",
        );
        let model = catalog.model("m").unwrap();
        assert!(model.is_limited());
        assert_eq!(chosen(model, ask(&[])), ["b"]);
        open_circuit(model.route("b").unwrap());
        assert_eq!(chosen(model, ask(&[])), ["wait"]);
        open_circuit(model.route("a").unwrap());
        assert_eq!(chosen(model, ask(&[])), ["wait"]);
        let circuits: Vec<_> = catalog.circuits().collect();
        assert_eq!(circuits, [("a", Circuit::Open), ("b", Circuit::Open)]);
    }

    #[test]
    fn a_route_that_takes_longer_than_the_time_left_is_skipped() {
        let catalog = catalog("'a', { backend = 'b', priority = 1 }");
        let model = catalog.model("m").unwrap();
        let [a, b] = ["a", "b"].map(|name| model.route(name).unwrap());
        a.pace.delivered_in(Duration::from_secs(61));
        assert_eq!(chosen(model, ask(&[])), ["b"]);
        b.pace.delivered_in(Duration::from_secs(59));
        assert_eq!(chosen(model, ask(&[])), ["b"]);
        b.pace.delivered_in(Duration::from_secs(61));
        assert_eq!(chosen(model, ask(&[])), ["wait"]);
    }

    #[test]
    fn a_route_that_cannot_take_the_task_is_never_chosen() {
        let catalog = catalog("'a'");
        let mut asked = ask(&[]);
        asked.requirements.mask = true;
        let model = catalog.model("m").unwrap();
        assert_eq!(chosen(model, asked), ["none"]);
    }

    #[test]
    fn a_backend_with_unchanged_settings_keeps_its_circuit_and_durations() {
        let before = catalog("'a', 'b'");
        let of = |catalog: &Catalog, name: &str| {
            let route = catalog.model("m").unwrap().route(name).unwrap();
            (route.breaker.circuit(), route.pace.typical())
        };
        for name in ["a", "b"] {
            let route = before.model("m").unwrap().route(name).unwrap();
            open_circuit(route);
            route.pace.delivered_in(Duration::from_secs(1));
        }
        let known = (Circuit::Open, Some(Duration::from_secs(1)));
        let config = config("{ backend = 'a', weight = 2 }, 'b'");
        let after = Catalog::open(&config, Some(&before)).unwrap();
        assert_eq!((of(&after, "a"), of(&after, "b")), (known, known));
    }
}
