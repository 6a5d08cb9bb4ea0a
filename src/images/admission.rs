//! Decides whether a request may wait, for its images or in the queue. Overload is reported before
//! anything is held, with a time after which a retry is worthwhile.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{dispatch, run::requirements, submit::Slot};
use crate::{
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Requirements, Route},
    },
    config::Config,
    ids::AccountId,
    tasks::{Request, backlog::Backlog, store::Line},
};

/// The longest `Retry-After` sent: clients don't honour longer ones.
const RETRY_MAX: Duration = Duration::from_mins(1);
const RETRY_MIN: Duration = Duration::from_secs(1);
/// How long until some of the account's tasks may have ended.
const OWN_RETRY: Duration = Duration::from_secs(5);
/// How long until a full queue may be shorter.
const FULL_RETRY: Duration = Duration::from_secs(10);

/// Whether the client waits for its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The client waits for its images.
    Sync,
    /// The client gets a task id and polls.
    Async,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    /// The account's share of waiting requests is used up.
    #[error("the account has {limit} requests waiting already, as many as it may")]
    AccountWaiters {
        /// The share, in requests.
        limit: usize,
    },
    /// The process's limit of waiting requests is reached.
    #[error("too many requests are waiting for their images")]
    Waiters,
    /// The account's share of the queue is used up.
    #[error("the account has {limit} tasks in the queue already, as many as it may")]
    AccountQueue {
        /// The share, in tasks.
        limit: u64,
    },
    /// `tasks.queued_max` is reached.
    #[error("the queue is full")]
    Queue,
    /// The circuits of all routes are open; the next probe is in `probe_due`.
    #[error("no upstream of this model can be used at present")]
    Circuits {
        /// From now.
        probe_due: Duration,
    },
    /// The expected wait exceeds the deadline or the client's wait by `too_long_by`.
    #[error("the queue is too long for the images to be ready in time")]
    Wait {
        /// The part of the expected wait that is too much.
        too_long_by: Duration,
    },
}

impl Overload {
    /// Whether the account itself caused it.
    pub fn is_own(self) -> bool {
        matches!(
            self,
            Self::AccountWaiters { .. } | Self::AccountQueue { .. }
        )
    }

    /// The time to send as `Retry-After`, from 1 s to 60 s.
    pub fn retry_after(self) -> Duration {
        let wait = match self {
            Self::AccountWaiters { .. } | Self::AccountQueue { .. } | Self::Waiters => OWN_RETRY,
            Self::Queue => FULL_RETRY,
            Self::Circuits { probe_due } => probe_due,
            Self::Wait { too_long_by } => too_long_by,
        };
        wait.clamp(RETRY_MIN, RETRY_MAX)
    }
}

/// The requests of this process that wait for their images, counted by account.
#[derive(Clone, Default)]
pub struct SyncWaiters(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    total: usize,
    by_account: HashMap<AccountId, usize>,
}

/// One waiting request. Dropped when it is answered or its client disconnects.
pub struct SyncWaiter {
    account: AccountId,
    all: SyncWaiters,
}

impl SyncWaiters {
    /// Counts one more waiting request, within the account's limit and the limit for all.
    pub fn enter(
        &self,
        account: AccountId,
        account_max: usize,
        all_max: usize,
    ) -> Result<SyncWaiter, Overload> {
        let mut counts = self.lock();
        let own = counts.by_account.get(&account).copied().unwrap_or_default();
        if own >= account_max {
            return Err(Overload::AccountWaiters { limit: account_max });
        }
        if counts.total >= all_max {
            return Err(Overload::Waiters);
        }
        counts.total += 1;
        counts.by_account.insert(account, own + 1);
        Ok(SyncWaiter {
            account,
            all: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SyncWaiter {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        counts.total -= 1;
        if let Some(own) = counts.by_account.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                counts.by_account.remove(&self.account);
            }
        }
    }
}

/// Decides which tasks begin at once, which wait, and which are refused. One for each process.
pub struct Admission {
    /// The slots of this process's worker: a permit lets one task run.
    slots: Arc<Semaphore>,
    /// Whether tasks wait only for a slot here: new ones must not overtake them.
    backlogged: AtomicBool,
    /// The tasks in the queue of all processes, as of the last count.
    pub backlog: Backlog,
    waiting: SyncWaiters,
}

impl Admission {
    /// Admits tasks to `running_max` slots.
    pub fn new(running_max: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(running_max)),
            backlogged: AtomicBool::new(false),
            backlog: Backlog::default(),
            waiting: SyncWaiters::default(),
        }
    }

    /// Counts a request that waits for its images until the result is dropped.
    pub fn enter(&self, config: &Config, account: AccountId) -> Result<SyncWaiter, Overload> {
        let own_max = config.tasks.account_sync_waiters_max;
        let all_max = config.server.sync_waiters_max();
        self.waiting.enter(account, own_max, all_max)
    }

    /// The slot and the route of a task that can begin at once: no task waits before it, its model has no limit
    /// that the queue must enforce, and the circuit of a route is closed.
    pub fn slot(&self, app: &App, request: &Request) -> Option<Slot> {
        if app.shutdown.has_begun() {
            return None;
        }
        let catalog = app.catalog();
        let model = catalog.model(&request.model)?;
        if model.is_limited() || self.is_backlogged() {
            return None;
        }
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let route = dispatch::route_at_once(model, request)?;
        Some(Slot { permit, route })
    }

    /// Up to `max` free slots, for tasks of the queue.
    pub fn free_slots(&self, max: usize) -> Vec<OwnedSemaphorePermit> {
        let free = || Arc::clone(&self.slots).try_acquire_owned().ok();
        std::iter::from_fn(free).take(max).collect()
    }

    /// Whether tasks wait only for a slot of this process.
    pub fn is_backlogged(&self) -> bool {
        self.backlogged.load(Ordering::Relaxed)
    }

    /// Records whether tasks wait only for a slot of this process.
    pub fn set_backlogged(&self, backlogged: bool) {
        self.backlogged.store(backlogged, Ordering::Relaxed);
    }

    /// Admits a request to the queue and counts it in the backlog, or returns why not.
    pub fn enqueue(
        &self,
        app: &App,
        account: AccountId,
        request: &Request,
        mode: Mode,
    ) -> Result<Line, Overload> {
        let (tasks, backlog) = (&app.config.tasks, &self.backlog);
        let own_max = tasks.account_queued_max;
        if backlog.of_account(account) >= own_max {
            return Err(Overload::AccountQueue { limit: own_max });
        }
        if backlog.total() >= tasks.queued_max {
            return Err(Overload::Queue);
        }
        let line = Line {
            account_id: account,
            model: request.model.clone(),
            requirements: requirements(request).column(),
        };
        let catalog = app.catalog();
        if let Some(model) = catalog.model(&request.model) {
            let outlook = self.outlook(app, &catalog, model, &line);
            let probe_due = outlook.probe_due;
            if mode == Mode::Sync && probe_due > app.config.routing.sync_wait() {
                return Err(Overload::Circuits { probe_due });
            }
            let patience = match mode {
                Mode::Sync => tasks.deadline().min(tasks.sync_wait_max()),
                Mode::Async => tasks.deadline(),
            };
            if let Some(too_long_by) = outlook.ready_in.checked_sub(patience)
                && !too_long_by.is_zero()
            {
                return Err(Overload::Wait { too_long_by });
            }
        }
        backlog.add(&line);
        Ok(line)
    }

    fn outlook(&self, app: &App, catalog: &Catalog, model: &Model, line: &Line) -> Outlook {
        let requirements = Requirements::of_column(line.requirements);
        let takes = |route: &&Route| route.can(requirements);
        let routes: Vec<&Route> = model.routes().iter().filter(takes).collect();
        let due = routes.iter().map(|route| route.breaker.probe_due());
        let probe_due = due.min().flatten().unwrap_or_default();
        let typical = routes.iter().filter_map(|route| route.pace.typical()).min();
        // Without known durations, nothing is refused.
        let Some(typical) = typical else {
            return Outlook {
                probe_due,
                ready_in: Duration::ZERO,
            };
        };
        let competes = |name: &str, requirements: i16| {
            let requirements = Requirements::of_column(requirements);
            let same = catalog
                .model(name)
                .is_some_and(|other| other.name == model.name);
            same && routes.iter().any(|route| route.can(requirements))
        };
        let before = self.backlog.before(line.account_id, competes);
        let for_routes = rounds(before, limit_of(&routes));
        let for_slots = if self.slots.available_permits() == 0 {
            // Other replicas have slots, too; the number of running tasks shows how many at least.
            let slots = u64::try_from(app.config.tasks.running_max).unwrap_or(u64::MAX);
            let slots = slots.max(self.backlog.running());
            rounds(
                self.backlog.before(line.account_id, |_, _| true),
                Some(slots),
            )
        } else {
            0.0
        };
        let wait = typical.mul_f64(for_routes.max(for_slots).min(ROUNDS_MAX));
        Outlook {
            probe_due,
            ready_in: probe_due.saturating_add(wait).saturating_add(typical),
        }
    }
}

/// What a request queued now can expect.
struct Outlook {
    /// Time until the next circuit probe of any route; zero unless all circuits are open.
    probe_due: Duration,
    /// Estimated time until its images are ready; zero if unknown.
    ready_in: Duration,
}

/// More rounds than this exceed any deadline.
const ROUNDS_MAX: f64 = 1e6;

/// How many tasks the routes generate at once; `None`: unlimited.
fn limit_of(routes: &[&Route]) -> Option<u64> {
    let limits = routes
        .iter()
        .map(|route| u64::from(route.settings.max_concurrency));
    limits.clone().all(|limit| limit > 0).then(|| limits.sum())
}

/// How many times `at_once` tasks have to end before `before` tasks have begun.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn rounds(before: u64, at_once: Option<u64>) -> f64 {
    at_once.map_or(0.0, |at_once| before as f64 / at_once.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    #[test]
    fn waiting_requests_are_limited_by_account_and_in_total() {
        let waiters = SyncWaiters::default();
        let [one, other] = [row_id(), row_id()];
        let enter = |account| waiters.enter(account, 2, 3);
        let first = enter(one).unwrap();
        let _second = enter(one).unwrap();
        let refused = enter(one).err().unwrap();
        assert_eq!(refused, Overload::AccountWaiters { limit: 2 });
        let _third = enter(other).unwrap();
        assert_eq!(enter(other).err(), Some(Overload::Waiters));
        drop(first);
        drop(enter(one).unwrap());
        assert!(enter(other).is_ok());
    }

    #[test]
    fn retry_after_stays_within_bounds() {
        let due = |seconds| Overload::Circuits {
            probe_due: Duration::from_secs(seconds),
        };
        assert_eq!(due(0).retry_after(), RETRY_MIN);
        assert_eq!(due(7).retry_after(), Duration::from_secs(7));
        assert_eq!(due(3_600).retry_after(), RETRY_MAX);
    }
}
