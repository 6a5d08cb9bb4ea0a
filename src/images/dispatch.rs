//! Taking tasks off the queue: which come next, and over which route each is drawn. One short transaction
//! at a time among all replicas, so that what a route may do at once is never exceeded.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{run::needs, verdict};
use crate::{
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Pick, Route},
    },
    ids::TaskId,
    tasks::{
        Assignment, Request, Task,
        store::{self, Claim, Room, Waiting},
    },
};

/// What a look at the queue came to.
#[derive(Debug)]
pub enum Dispatched {
    /// Another worker is looking.
    Busy,
    Tasks {
        tasks: Vec<(Task, Assignment)>,
        /// Whether more of them may be waiting.
        more: bool,
    },
}

/// Claims up to `limit` tasks for this process.
pub async fn claim(app: &App, limit: usize) -> sqlx::Result<Dispatched> {
    let catalog = app.catalog();
    let mut tx = app.pool.begin().await?;
    if !store::lock_queue(&mut tx).await? {
        tx.rollback().await?;
        return Ok(Dispatched::Busy);
    }
    let mut rooms = Rooms::read(&mut tx, &catalog).await?;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let waiting = store::waiting(&mut tx, &rooms.of_models(&catalog), most).await?;
    let found = waiting.len();
    let mut assignments: HashMap<TaskId, Assignment> = waiting
        .into_iter()
        .filter_map(|waiting| rooms.assign(&catalog, waiting))
        .collect();
    if assignments.is_empty() {
        tx.rollback().await?;
        let tasks = Vec::new();
        return Ok(Dispatched::Tasks { tasks, more: false });
    }
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
    let more = found == limit;
    Ok(Dispatched::Tasks { tasks, more })
}

/// Who draws a task that has not been tried yet, where no route of its model is limited: then there is
/// nothing to look up.
pub fn route_at_once(model: &Model, request: &Request) -> Option<String> {
    match model.pick(needs(request), &[], |_| true) {
        Pick::Route(route) => Some(route.name.clone()),
        Pick::Full | Pick::Nobody => None,
    }
}

/// How many more tasks the limited routes may draw, by model and route.
struct Rooms(HashMap<(String, String), u32>);

impl Rooms {
    async fn read(conn: &mut PgConnection, catalog: &Catalog) -> sqlx::Result<Self> {
        let limited: Vec<&Model> = catalog
            .models()
            .filter(|model| model.is_limited())
            .collect();
        if limited.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let names: Vec<String> = limited.iter().map(|model| model.name.clone()).collect();
        let running: HashMap<(String, String), i64> = store::running(conn, &names)
            .await?
            .into_iter()
            .map(|(model, route, running)| ((model, route), running))
            .collect();
        let mut rooms = HashMap::new();
        for model in limited {
            for route in model.routes() {
                let key = (model.name.clone(), route.name.clone());
                let running = running.get(&key).copied().unwrap_or_default();
                if let Some(room) = route.room(u32::try_from(running).unwrap_or(u32::MAX)) {
                    rooms.insert(key, room);
                }
            }
        }
        Ok(Self(rooms))
    }

    /// For each model that cannot take any number of tasks: how many.
    fn of_models(&self, catalog: &Catalog) -> Vec<Room> {
        let limited = catalog.models().filter(|model| model.is_limited());
        limited
            .filter_map(|model| {
                let usable = model.routes().iter().filter(|r| !r.breaker.is_resting());
                let rooms: Option<Vec<u32>> = usable.map(|r| self.of_route(model, r)).collect();
                // Where all routes rest, tasks need not wait to be told so.
                let rooms = rooms.filter(|rooms| !rooms.is_empty())?;
                let tasks = rooms.into_iter().fold(0, u32::saturating_add);
                Some(Room {
                    model: model.name.clone(),
                    tasks,
                })
            })
            .collect()
    }

    /// `None`: any number.
    fn of_route(&self, model: &Model, route: &Route) -> Option<u32> {
        let key = (model.name.clone(), route.name.clone());
        self.0.get(&key).copied()
    }

    /// Says over which route a task is drawn; `None`: it has to wait for a place.
    fn assign(&mut self, catalog: &Catalog, waiting: Waiting) -> Option<(TaskId, Assignment)> {
        let mut assignment = waiting.assignment;
        let Some(model) = catalog.model(&waiting.model) else {
            // It is claimed to be told that its model is gone.
            assignment.route = None;
            return Some((waiting.id, assignment));
        };
        let pinned = assignment
            .route
            .as_deref()
            .and_then(|name| model.route(name));
        let has_room = |route: &Route| self.of_route(model, route) != Some(0);
        let picked = match pinned {
            Some(route) if has_room(route) => Pick::Route(route),
            Some(_) => Pick::Full,
            None => {
                let tried = verdict::tried(&assignment, None);
                model.pick(needs(&waiting.request), &tried, has_room)
            }
        };
        let route = match picked {
            Pick::Full => return None,
            Pick::Nobody => None,
            Pick::Route(route) => {
                let key = (model.name.clone(), route.name.clone());
                if let Some(room) = self.0.get_mut(&key) {
                    *room -= 1;
                }
                Some(route.name.clone())
            }
        };
        if pinned.is_none() {
            assignment.jobs.clear();
        }
        assignment.route = route;
        Some((waiting.id, assignment))
    }
}
