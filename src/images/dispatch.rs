//! IngestWriter tasks off the queue: which come next, and over which route each is generated. One short transaction
//! at a time among all replicas, so that what a route may do at once is never exceeded.

use std::{collections::HashMap, ptr, time::Duration};

use sqlx::PgConnection;

use super::{retry, run::requirements};
use crate::{
    app::App,
    backend::{
        Catalog,
        catalog::{Ask, Model, Pick, Requirements, Route},
    },
    ids::TaskId,
    tasks::{
        Assignment, Request, Task,
        store::{self, Claim, Demand, Waiting},
    },
};

/// What a look at the queue came to.
#[derive(Debug)]
pub enum Dispatched {
    /// Another worker is looking, or what came next has just stepped aside: look again in a moment.
    Busy,
    Tasks {
        tasks: Vec<(Task, Assignment)>,
        /// Whether more of them may be waiting.
        more: bool,
    },
}

/// For so long others pass a task that waits for a route of its own.
const ASIDE: Duration = Duration::from_secs(1);

/// Claims up to `limit` tasks for this process.
pub async fn claim(app: &App, limit: usize) -> sqlx::Result<Dispatched> {
    app.pool.in_time(claim_some(app, limit)).await
}

async fn claim_some(app: &App, limit: usize) -> sqlx::Result<Dispatched> {
    let catalog = app.catalog();
    let mut tx = app.pool.begin().await?;
    if !store::lock_queue(&mut tx).await? {
        tx.rollback().await?;
        return Ok(Dispatched::Busy);
    }
    let most = u32::try_from(limit).unwrap_or(u32::MAX);
    let queued = store::queued_classes(&mut tx).await?;
    let mut capacity = Capacity::read(&mut tx, &catalog, most).await?;
    let demands = capacity.demands(queued);
    let waiting = store::waiting(&mut tx, &demands, i64::from(most)).await?;
    let more = waiting.len() == limit;
    let (mut assignments, mut left) = (HashMap::new(), Vec::new());
    for waiting in waiting {
        match capacity.assign(&waiting) {
            Some(assignment) => drop(assignments.insert(waiting.id, assignment)),
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
            let tasks = Vec::new();
            Dispatched::Tasks { tasks, more: false }
        } else {
            Dispatched::Busy
        });
    }
    let more = more || !aside.is_empty();
    let claims: Vec<Claim> = assignments
        .iter()
        .map(|(id, assignment)| Claim {
            id: *id,
            route: assignment.route.clone(),
        })
        .collect();
    let tasks = store::claim(&mut tx, &claims, app.config.tasks.lease()).await?;
    tx.commit().await?;
    let tasks: Vec<(Task, Assignment)> = tasks
        .into_iter()
        .filter_map(|task| assignments.remove(&task.id).map(|with| (task, with)))
        .collect();
    Ok(Dispatched::Tasks { tasks, more })
}

/// Who generates a task that has not been tried yet, where no route of its model is limited: then there is
/// nothing to look up. `None`: it has to wait, or to be told so by who looks at the queue.
pub fn route_at_once(model: &Model, request: &Request) -> Option<String> {
    let ask = Ask {
        requirements: requirements(request),
        tried: &[],
        left: Duration::MAX,
    };
    // A probe is for the queue to hand out: not everybody who comes now can have it.
    match model.pick(ask, |route| route.breaker.capacity().map(|_| 0)) {
        Pick::Route(route) => Some(route.name.clone()),
        Pick::AtCapacity | Pick::NoRoute => None,
    }
}

/// What the routes may begin now: by their limits, counted over all replicas, and by their circuits.
struct Capacity<'a> {
    catalog: &'a Catalog,
    /// Of each model's routes; any number for those that are not in it.
    free: HashMap<(&'a str, &'a str), u32>,
    /// How many tasks are claimed at most.
    limit: u32,
}

impl<'a> Capacity<'a> {
    async fn read(conn: &mut PgConnection, catalog: &'a Catalog, limit: u32) -> sqlx::Result<Self> {
        let limited = catalog.models().filter(|model| model.is_limited());
        // A model that was renamed has tasks under its old name, too.
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

    /// Of these models and requirements those of which something may be claimed. Tasks whose model is gone, or that
    /// no route takes, are claimed to be told so.
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

    /// How many tasks these routes may begin now, and how much time the quickest of those that may requirements.
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

    /// `None`: any number.
    fn of_route(&self, model: &Model, route: &Route) -> Option<u32> {
        let name = (model.name.as_str(), route.name.as_str());
        self.free.get(&name).copied()
    }

    /// Whether some route that takes the task may begin more.
    fn is_left_for(&self, waiting: &Waiting) -> bool {
        let routes = self.takers(&waiting.model, waiting.requirements);
        self.of_routes(self.catalog.model(&waiting.model), &routes)
            .0
            > 0
    }

    /// Says over which route a task is generated; `None`: it has to wait.
    fn assign(&mut self, waiting: &Waiting) -> Option<Assignment> {
        let mut assignment = waiting.assignment.clone();
        let Some(model) = self.catalog.model(&waiting.model) else {
            // It is claimed to be told that its model is gone.
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
