//! Whether a request may wait, for its images or in the queue: overload is told before anything is held, with
//! the time after which a retry is worth while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::run::requirements;
use crate::{
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Requirements, Route},
    },
    ids::AccountId,
    tasks::{Request, store::Line},
};

/// What a client is told to wait before it comes again: clients don't heed more.
const RETRY_MAX: Duration = Duration::from_mins(1);
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Until some of an account's tasks may have ended.
const OWN_RETRY: Duration = Duration::from_secs(5);
/// Until a full queue may be shorter.
const FULL_RETRY: Duration = Duration::from_secs(10);

/// Whether the client waits for its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Sync,
    Async,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    #[error("the account has {limit} requests waiting already, as many as it may")]
    AccountWaiters { limit: usize },
    #[error("too many requests are waiting for their images")]
    Waiters,
    #[error("the account has {limit} tasks in the queue already, as many as it may")]
    AccountQueue { limit: u64 },
    #[error("the queue is full")]
    Queue,
    #[error("no upstream of this model can be used at present")]
    Circuits { probe_due: Duration },
    #[error("the queue is too long for the images to be ready in time")]
    Wait { too_long_by: Duration },
}

impl Overload {
    /// Whether it is the account's own doing.
    pub fn is_own(self) -> bool {
        matches!(
            self,
            Self::AccountWaiters { .. } | Self::AccountQueue { .. }
        )
    }

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

/// The requests that wait for their images in this process, by account.
#[derive(Clone, Default)]
pub struct SyncWaiters(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    total: usize,
    by_account: HashMap<AccountId, usize>,
}

/// One request that waits; dropped when it is answered, or its client is gone.
pub struct SyncWaiter {
    account: AccountId,
    all: SyncWaiters,
}

impl SyncWaiters {
    /// Counts one more, within the share of its account and what all may be together.
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

/// Lets a request join the queue, where it counts from now on, or says why not.
pub fn enqueue(
    app: &App,
    account: AccountId,
    request: &Request,
    mode: Mode,
) -> Result<Line, Overload> {
    let (tasks, backlog) = (&app.config.tasks, &app.backlog);
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
        let outlook = Outlook::new(app, &catalog, model, &line);
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

/// What a request that is queued now has to expect.
struct Outlook {
    /// Until the next probe of a route's circuit, where all are open.
    probe_due: Duration,
    /// Until its images are ready, as far as that can be known.
    ready_in: Duration,
}

impl Outlook {
    fn new(app: &App, catalog: &Catalog, model: &Model, line: &Line) -> Self {
        let requirements = Requirements::of_column(line.requirements);
        let takes = |route: &&Route| route.can(requirements);
        let routes: Vec<&Route> = model.routes().iter().filter(takes).collect();
        let due = routes.iter().map(|route| route.breaker.probe_due());
        let probe_due = due.min().flatten().unwrap_or_default();
        let typical = routes.iter().filter_map(|route| route.pace.typical()).min();
        // Nothing is known, and nobody is turned away for it.
        let Some(typical) = typical else {
            return Self {
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
        let before = app.backlog.before(line.account_id, competes);
        let for_routes = rounds(before, limit_of(&routes));
        let for_slots = if app.slots.available_permits() == 0 {
            // Other replicas have slots, too: what runs in all shows how many.
            let slots = u64::try_from(app.config.tasks.running_max).unwrap_or(u64::MAX);
            let slots = slots.max(app.backlog.running());
            rounds(
                app.backlog.before(line.account_id, |_, _| true),
                Some(slots),
            )
        } else {
            0.0
        };
        let wait = typical.mul_f64(for_routes.max(for_slots).min(ROUNDS_MAX));
        Self {
            probe_due,
            ready_in: probe_due.saturating_add(wait).saturating_add(typical),
        }
    }
}

/// More than this takes longer than any deadline.
const ROUNDS_MAX: f64 = 1e6;

/// How many tasks routes generate at once; `None`: any number.
fn limit_of(routes: &[&Route]) -> Option<u64> {
    let limits = routes
        .iter()
        .map(|route| u64::from(route.settings.max_concurrency));
    limits.clone().all(|limit| limit > 0).then(|| limits.sum())
}

/// How many times those `at_once` have to end before `before` tasks have begun.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn rounds(before: u64, at_once: Option<u64>) -> f64 {
    at_once.map_or(0.0, |at_once| before as f64 / at_once.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    #[test]
    fn those_who_wait_have_shares() {
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
    fn a_retry_is_asked_for_within_bounds() {
        let due = |seconds| Overload::Circuits {
            probe_due: Duration::from_secs(seconds),
        };
        assert_eq!(due(0).retry_after(), RETRY_MIN);
        assert_eq!(due(7).retry_after(), Duration::from_secs(7));
        assert_eq!(due(3_600).retry_after(), RETRY_MAX);
    }
}
