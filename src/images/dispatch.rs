//! Claims tasks from the queue: which come next, and which route generates each. Only one replica
//! claims at a time, in a short transaction, so that no route exceeds its limit.

use std::{collections::HashMap, ptr, time::Duration};

use sqlx::PgConnection;

use super::{retry, run::requirements};
use crate::{
    app::App,
    backend::{
        Ask, Catalog, Pick,
        catalog::{Model, Requirements, Route},
    },
    db::{self, Patience},
    ids::TaskId,
    tasks::{
        Assignment, Claim, Request,
        store::{self, Demand, Waiting},
    },
};

/// The result of one claim.
#[derive(Debug)]
pub enum Dispatched {
    /// Another worker is claiming, or the next tasks just stepped aside: try again in a moment.
    Busy,
    /// Tasks that were claimed for this process; may be empty.
    Tasks {
        /// The claimed tasks and how to generate each.
        claims: Vec<Claim>,
        /// Whether more claimable tasks may be waiting.
        more: bool,
    },
}

/// How long other tasks may pass a task that waits for a route of its own.
const ASIDE: Duration = Duration::from_secs(1);

/// Claims up to `limit` tasks for this process.
pub async fn claim(app: &App, limit: usize) -> sqlx::Result<Dispatched> {
    app.pool.in_time(claim_some(app, limit)).await
}

async fn claim_some(app: &App, limit: usize) -> sqlx::Result<Dispatched> {
    let catalog = app.catalog();
    let mut tx = db::begin(&app.pool, Patience::Much).await?;
    if !store::lock_queue(&mut tx).await? {
        tx.rollback().await?;
        return Ok(Dispatched::Busy);
    }
    let most = u32::try_from(limit).unwrap_or(u32::MAX);
    let mut queued = store::queued_classes(&mut tx).await?;
    let is_known = |(model, _): &(String, i16)| catalog.model(model).is_some();
    if !queued.iter().all(is_known) && db::is_another_alive(&mut tx, app.waiters.process()).await? {
        // The other process may know the model: configurations change one process at a time.
        queued.retain(is_known);
    }
    let mut capacity = Capacity::read(&mut tx, &catalog, most).await?;
    let demands = capacity.demands(queued);
    let waiting = store::waiting(&mut tx, &demands, i64::from(most)).await?;
    let more = waiting.len() == limit;
    let (mut assignments, mut left) = (Vec::new(), Vec::new());
    for waiting in waiting {
        match capacity.assign(&waiting) {
            Some(assignment) => assignments.push((waiting.id, assignment)),
            None => left.push(waiting),
        }
    }
    let left = left.iter().filter(|waiting| capacity.is_left_for(waiting));
    let aside: Vec<TaskId> = left.map(|waiting| waiting.id).collect();
    if !aside.is_empty() {
        store::step_aside(&mut tx, &aside, ASIDE).await?;
    }
    if assignments.is_empty() {
        tx.commit().await?;
        return Ok(if aside.is_empty() {
            Dispatched::Tasks {
                claims: Vec::new(),
                more: false,
            }
        } else {
            Dispatched::Busy
        });
    }
    let more = more || !aside.is_empty();
    let claims = store::claim(&mut tx, assignments, app.config.tasks.lease()).await?;
    tx.commit().await?;
    Ok(Dispatched::Tasks { claims, more })
}

/// Chooses the route of a new task if no route of its model is limited: then nothing has to be
/// looked up. `None`: the task must queue; the claim decides, or fails it if no route can take it.
pub fn route_at_once(model: &Model, request: &Request) -> Option<String> {
    let ask = Ask {
        requirements: requirements(request),
        tried: &[],
        left: Duration::MAX,
    };
    // Only the queue hands out probes: not every new request may have one.
    match model.pick(ask, |route| route.breaker.capacity().map(|_| 0)) {
        Pick::Route(route) => Some(route.name.clone()),
        Pick::AtCapacity | Pick::NoRoute => None,
    }
}

/// How many tasks the routes may begin now: by their limits, counted over all replicas, and their circuits.
struct Capacity<'a> {
    catalog: &'a Catalog,
    /// Free capacity by model and route; a route that is missing here is unlimited.
    free: HashMap<(&'a str, &'a str), u32>,
    /// The most tasks to claim.
    limit: u32,
}

impl<'a> Capacity<'a> {
    async fn read(conn: &mut PgConnection, catalog: &'a Catalog, limit: u32) -> sqlx::Result<Self> {
        let limited = catalog.models().filter(|model| model.is_limited());
        // Tasks of a renamed model may still carry its old name.
        let names: Vec<String> = limited
            .flat_map(|model| model.settings.aliases.iter().chain([&model.name]))
            .cloned()
            .collect();
        let mut running: HashMap<(&str, String), u32> = HashMap::new();
        if !names.is_empty() {
            for (model, route, tasks) in store::running(conn, &names).await? {
                if let Some(model) = catalog.model(&model) {
                    let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
                    *running.entry((&model.name, route)).or_default() += tasks;
                }
            }
        }
        let mut free = HashMap::new();
        for model in catalog.models() {
            for route in model.routes() {
                let name = (model.name.as_str(), route.name.clone());
                let running = running.get(&name).copied().unwrap_or_default();
                if let Some(capacity) = route.capacity(running) {
                    free.insert((model.name.as_str(), route.name.as_str()), capacity);
                }
            }
        }
        Ok(Self {
            catalog,
            free,
            limit,
        })
    }

    /// Returns those of the queued models and requirements of which a task may be claimed. A task whose
    /// model is gone, or that no route can take is claimed too, so that it fails with a reason.
    fn demands(&self, queued: Vec<(String, i16)>) -> Vec<Demand> {
        let mut pools: Vec<Vec<&Route>> = Vec::new();
        let mut demands = Vec::new();
        for (model, requirements) in queued {
            let routes = self.takers(&model, requirements);
            let same = |pool: &Vec<&Route>| {
                pool.len() == routes.len() && pool.iter().zip(&routes).all(|(a, b)| ptr::eq(*a, *b))
            };
            let (capacity, least) = self.of_routes(self.catalog.model(&model), &routes);
            let pool = pools.iter().position(same).unwrap_or_else(|| {
                pools.push(routes);
                pools.len() - 1
            });
            if capacity > 0 {
                demands.push(Demand {
                    model,
                    requirements,
                    pool: i32::try_from(pool).unwrap_or(i32::MAX),
                    capacity,
                    least,
                });
            }
        }
        demands
    }

    fn takers(&self, model: &str, requirements: i16) -> Vec<&'a Route> {
        let routes = self
            .catalog
            .model(model)
            .into_iter()
            .flat_map(Model::routes);
        routes
            .filter(|route| route.can(Requirements::of_column(requirements)))
            .collect()
    }

    /// How many tasks these routes may begin now, and the least time left that the fastest of them needs.
    fn of_routes(&self, model: Option<&Model>, routes: &[&Route]) -> (u32, Duration) {
        let (Some(model), [_, ..]) = (model, routes) else {
            return (self.limit, Duration::ZERO);
        };
        let free = |route: &&&Route| self.of_route(model, route) != Some(0);
        let capacity = routes
            .iter()
            .map(|route| self.of_route(model, route).unwrap_or(self.limit))
            .fold(0, u32::saturating_add);
        let least = routes
            .iter()
            .filter(free)
            .map(|route| route.pace.least())
            .min();
        (capacity.min(self.limit), least.unwrap_or_default())
    }

    /// The route's free capacity; `None`: unlimited.
    fn of_route(&self, model: &Model, route: &Route) -> Option<u32> {
        let name = (model.name.as_str(), route.name.as_str());
        self.free.get(&name).copied()
    }

    /// Whether a route that can take the task has capacity left.
    fn is_left_for(&self, waiting: &Waiting) -> bool {
        let routes = self.takers(&waiting.model, waiting.requirements);
        self.of_routes(self.catalog.model(&waiting.model), &routes)
            .0
            > 0
    }

    /// Assigns a task to a route and takes capacity from it. `None`: the task has to wait.
    fn assign(&mut self, waiting: &Waiting) -> Option<Assignment> {
        let mut assignment = waiting.assignment.clone();
        let Some(model) = self.catalog.model(&waiting.model) else {
            // It is claimed so that it fails with a reason: no process knows its model.
            assignment.route = None;
            return Some(assignment);
        };
        let pinned = assignment
            .route
            .as_deref()
            .and_then(|name| model.route(name));
        let capacity = |route: &Route| self.of_route(model, route);
        let picked = match pinned {
            Some(route) if capacity(route) != Some(0) => Pick::Route(route),
            Some(_) => Pick::AtCapacity,
            None => {
                let ask = Ask {
                    requirements: Requirements::of_column(waiting.requirements),
                    tried: &retry::tried(&waiting.assignment, None),
                    left: waiting.left,
                };
                model.pick(ask, capacity)
            }
        };
        let route = match picked {
            Pick::AtCapacity => return None,
            Pick::NoRoute => None,
            Pick::Route(route) => {
                let name = (model.name.as_str(), route.name.as_str());
                if let Some(free) = self.free.get_mut(&name) {
                    *free -= 1;
                }
                Some(route.name.clone())
            }
        };
        if pinned.is_none() {
            assignment.jobs.clear();
        }
        assignment.route = route;
        Some(assignment)
    }
}
