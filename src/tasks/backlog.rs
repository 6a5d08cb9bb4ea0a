//! How many tasks wait in the queue, by account and class: the last count, adjusted by what this
//! process has added and claimed since. Other processes' changes appear with the next count.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::store::{self, Line};
use crate::ids::AccountId;

/// The shortest time between two counts; a slow count is repeated after `COUNT_SHARE` times its duration.
const COUNT_WAIT_MIN: Duration = Duration::from_millis(500);
const COUNT_SHARE: u32 = 20;

/// The number of queued tasks, by account and class (model and requirements).
#[derive(Default)]
pub struct Backlog(Mutex<State>);

#[derive(Default)]
struct State {
    /// Models with their requirements; the index is the class number.
    classes: Vec<(String, i16)>,
    /// Queued tasks of each account, by class number.
    accounts: HashMap<AccountId, HashMap<usize, u64>>,
    total: u64,
    /// How many tasks are running, in all processes.
    running: u64,
    next_count: Option<Instant>,
}

impl Backlog {
    /// Counts a task that this process is about to queue.
    pub fn add(&self, line: &Line) {
        self.lock().add(line, 1);
    }

    /// Removes a task that was claimed here or was not accepted after all.
    pub fn remove(&self, line: &Line) {
        let mut state = self.lock();
        let class = state.class(&line.model, line.requirements);
        let count = state.accounts.get_mut(&line.account_id);
        if let Some(count) = count.and_then(|classes| classes.get_mut(&class))
            && *count > 0
        {
            *count -= 1;
            state.total -= 1;
        }
    }

    /// Records that the queue is empty.
    pub fn clear(&self) {
        *self.lock() = State::default();
    }

    /// Counts anew, unless the last count is recent. Counts at most `at_most` tasks.
    pub async fn count(&self, conn: &mut sqlx::PgConnection, at_most: i64) -> sqlx::Result<()> {
        let began = Instant::now();
        if self.lock().next_count.is_some_and(|next| began < next) {
            return Ok(());
        }
        let (lines, running) = store::count_queued(conn, at_most).await?;
        let wait = (began.elapsed() * COUNT_SHARE).max(COUNT_WAIT_MIN);
        let mut state = State {
            running,
            next_count: Some(Instant::now() + wait),
            ..State::default()
        };
        for (line, tasks) in lines {
            state.add(&line, tasks);
        }
        *self.lock() = state;
        Ok(())
    }

    /// How many tasks are queued.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// How many tasks are running in all processes, as last counted.
    pub fn running(&self) -> u64 {
        self.lock().running
    }

    /// How many of an account's tasks are queued.
    pub fn of_account(&self, account: AccountId) -> u64 {
        let state = self.lock();
        let classes = state.accounts.get(&account);
        classes.map_or(0, |classes| classes.values().sum())
    }

    /// How many competing tasks come before an account's next one. Accounts take turns: each other
    /// account contributes at most one task more than the account itself has queued.
    pub fn before(&self, account: AccountId, competes: impl Fn(&str, i16) -> bool) -> u64 {
        let state = self.lock();
        let classes = state.classes.iter();
        let competing: Vec<bool> = classes
            .map(|(model, requirements)| competes(model, *requirements))
            .collect();
        let of = |classes: &HashMap<usize, u64>| -> u64 {
            let competing = classes.iter().filter(|(class, _)| competing[**class]);
            competing.map(|(_, tasks)| *tasks).sum()
        };
        let own = state.accounts.get(&account).map_or(0, of);
        let others = state
            .accounts
            .iter()
            .filter(|(other, _)| **other != account);
        let before: u64 = others.map(|(_, classes)| of(classes).min(own + 1)).sum();
        before + own
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, line: &Line, tasks: u64) {
        let class = self.class(&line.model, line.requirements);
        let account = self.accounts.entry(line.account_id).or_default();
        *account.entry(class).or_default() += tasks;
        self.total += tasks;
    }

    /// Returns the number of a class, adding it if it is new.
    fn class(&mut self, model: &str, requirements: i16) -> usize {
        let known = self.classes.iter();
        let known = known
            .clone()
            .position(|(name, other)| name == model && *other == requirements);
        known.unwrap_or_else(|| {
            self.classes.push((model.to_owned(), requirements));
            self.classes.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    #[test]
    fn a_large_backlog_of_one_account_does_not_delay_another() {
        let backlog = Backlog::default();
        let [crowd, one, new] = [row_id(), row_id(), row_id()];
        let line = |account_id, model: &str, requirements| Line {
            account_id,
            model: model.to_owned(),
            requirements,
        };
        for _ in 0..1000 {
            backlog.add(&line(crowd, "m", 0));
        }
        for _ in 0..3 {
            backlog.add(&line(one, "m", 100));
            backlog.add(&line(one, "other", 0));
        }
        backlog.remove(&line(one, "other", 0));
        backlog.remove(&line(new, "other", 0));
        assert_eq!(backlog.total(), 1005);
        assert_eq!(backlog.of_account(one), 5);
        let of_m = |model: &str, _| model == "m";
        assert_eq!(backlog.before(new, of_m), 2);
        assert_eq!(backlog.before(one, of_m), 4 + 3);
        assert_eq!(
            backlog.before(one, |model, requirements| model == "m" && requirements > 0),
            3
        );
        assert_eq!(backlog.before(crowd, of_m), 1003);
        backlog.clear();
        assert_eq!((backlog.total(), backlog.before(crowd, of_m)), (0, 0));
    }
}
