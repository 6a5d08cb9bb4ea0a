//! Accepts requests: one statement holds the prices and inserts the tasks, in a transaction that locks the accounts
//! first where repeats are looked for or prices are refused. Requests that arrive meanwhile share the next.

mod candidate;
mod known;
mod submission;

pub use submission::{Generation, Repeat, Slot, Submission, SubmitError, Submitted};

use std::{
    collections::{HashMap, HashSet},
    slice,
    sync::Arc,
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};

use self::{
    candidate::{Candidate, Decision},
    known::Known,
};
use super::Claimed;
use crate::{
    batch::{Batcher, Closed, Lane, Worked},
    billing::ledger::{self, Acceptance, Accepted, NewTask, Terms},
    db::{self, DatabaseTime, Keeper, Trouble, trouble},
    ids::{AccountId, KeyId, TaskId},
    progress::{Loop, Progress},
    tasks::{Assignment, Claim, repeats, wait::Waiters},
};

/// How many submissions may share a transaction.
const BATCH_MAX: usize = 256;
/// How many accounts with a lane of their own are handled at a time: each takes a connection.
const ALONE_MAX: usize = 4;
/// A request that took at least this long to accept may have been retried elsewhere. Clients retry after half a
/// second at the earliest.
const RETRIED_AFTER: Duration = Duration::from_millis(500);

type Answer = Result<Submitted, SubmitError>;

/// Accepts submissions, in batches.
#[derive(Clone)]
pub struct Submitter(Batcher<Candidate, Answer>);

impl Submitter {
    /// Submits one request. `Closed`: the loop has ended.
    pub async fn call(&self, submission: Submission) -> Result<Answer, Closed> {
        self.0.call(Candidate::new(submission)).await
    }
}

/// What the submitter works with.
pub struct SubmitBatch {
    /// The database.
    pub pool: db::Pool,
    /// Callers that wait for tasks in this process.
    pub waiters: Waiters,
    /// Reports whether the submitter makes progress.
    pub progress: Progress,
    /// Receives claimed tasks for the worker. The loop sends them, not the caller, which may have
    /// disconnected meanwhile.
    pub claimed: mpsc::UnboundedSender<Claimed>,
    /// How long claims and tasks last.
    pub terms: Terms,
    /// The database's clock.
    pub time: DatabaseTime,
}

/// Starts the loop that accepts submissions.
pub fn start(submit: SubmitBatch) -> Submitter {
    let submit = Arc::new(submit);
    let alone = Arc::new(Semaphore::new(ALONE_MAX));
    let account_of = |candidate: &Candidate| candidate.task.account_id;
    Submitter(Batcher::start_with_lanes(
        BATCH_MAX,
        account_of,
        move |batch, lane| {
            let (submit, alone) = (Arc::clone(&submit), Arc::clone(&alone));
            async move {
                match lane {
                    Lane::Shared => submit.accept_together(batch).await,
                    Lane::Own => Ok(submit.accept_alone(batch, &alone).await),
                }
            }
        },
    ))
}

/// Whether this is the first try of a batch, or a second that may find the first one committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    First,
    Second,
}

impl SubmitBatch {
    /// Accepts a whole batch. On an error other than a lost connection, the batch is taken apart.
    async fn accept_together(&self, mut batch: Vec<Candidate>) -> Worked<Candidate, Answer> {
        let attempt = self.progress.begin(Loop::Submit);
        let until = self.patience_of(&batch);
        match self.try_twice(&mut batch, Lane::Shared, until).await {
            Ok(()) => {
                attempt.succeeded();
                Ok(self.answer(batch))
            }
            Err(error) if trouble(&error) == Trouble::Unreachable => {
                refuse(&mut batch, error);
                Ok(self.answer(batch))
            }
            Err(error) => {
                attempt.succeeded();
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "taking a batch of submissions apart"
                );
                Err(batch)
            }
        }
    }

    /// Accepts submissions of one account, which may wait for its lock. If the database refuses the
    /// batch, each candidate is tried alone, so that none fails because of another.
    async fn accept_alone(&self, mut batch: Vec<Candidate>, alone: &Semaphore) -> Vec<Answer> {
        let until = self.patience_of(&batch);
        let accepted = async {
            let _turn = alone.acquire().await;
            self.try_twice(&mut batch, Lane::Own, until).await
        };
        let accepted = tokio::time::timeout_at(until, accepted).await;
        match accepted.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(()) => {}
            Err(error) if is_of_one(&error) && batch.len() > 1 => {
                for candidate in &mut batch {
                    let candidate = slice::from_mut(candidate);
                    if let Err(error) = self.try_twice(candidate, Lane::Own, until).await {
                        refuse(candidate, error);
                    }
                }
            }
            Err(error) => refuse(&mut batch, error),
        }
        self.answer(batch)
    }

    /// When the caller that has waited longest must have an answer.
    fn patience_of(&self, batch: &[Candidate]) -> Instant {
        let asked = batch.iter().map(|candidate| candidate.asked).min();
        asked.unwrap_or_else(Instant::now) + self.pool.patience()
    }

    /// Decides every candidate.
    ///
    /// If the connection is lost, the first try may have been committed nevertheless: the second try, with the
    /// same ids, finds its tasks. A locked account is waited for again only in a lane of its own.
    async fn try_twice(
        &self,
        candidates: &mut [Candidate],
        lane: Lane,
        until: Instant,
    ) -> sqlx::Result<()> {
        let first = async {
            self.accept_plain(candidates, lane, left(until)).await?;
            self.transact(candidates, lane, Try::First).await
        };
        let Err(error) = self.pool.within(left(until), first).await else {
            return Ok(());
        };
        let again = match trouble(&error) {
            Trouble::Unreachable => true,
            Trouble::Contended => lane == Lane::Own,
            Trouble::Refused | Trouble::Other => false,
        };
        if !again || left(until).is_zero() {
            return Err(error);
        }
        let second = self.transact(candidates, lane, Try::Second);
        self.pool.within(left(until), second).await
    }

    /// Accepts, in one statement, the candidates that only their price can refuse. Those whose accounts cannot pay for
    /// all of theirs stay undecided. Past its limit the statement accepts nothing, so that a second try can rely on it.
    async fn accept_plain(
        &self,
        candidates: &mut [Candidate],
        lane: Lane,
        limit: Duration,
    ) -> sqlx::Result<()> {
        let Some(until) = self.time.after(limit.min(self.pool.timeout())) else {
            return Ok(());
        };
        // The requests of an account are decided in their order: all of them here, or none.
        let others = candidates.iter().filter(|c| !c.is_plain(&self.waiters));
        let others: HashSet<AccountId> = others.map(|c| c.task.account_id).collect();
        let mut plain: Vec<&mut Candidate> = candidates
            .iter_mut()
            .filter(|c| c.is_undecided() && !others.contains(&c.task.account_id))
            .collect();
        if plain.is_empty() {
            return Ok(());
        }
        let mut conn = self.pool.kept(Keeper::Submit).await?;
        let acceptance = Acceptance {
            patience: lane.into(),
            until: Some(until),
        };
        let accepted = self.insert(&mut conn, &mut plain, acceptance).await?;
        conn.keep();
        for candidate in plain {
            if let Some(accepted) = accepted.get(&candidate.task.id) {
                candidate.decision = Decision::Accepted(*accepted);
            }
        }
        Ok(())
    }

    /// Decides the undecided candidates one by one, while their accounts are locked.
    async fn transact(
        &self,
        candidates: &mut [Candidate],
        lane: Lane,
        which: Try,
    ) -> sqlx::Result<()> {
        let undecided = candidates.iter_mut().filter(|c| c.is_undecided());
        let mut undecided: Vec<&mut Candidate> = undecided.collect();
        if undecided.is_empty() {
            return Ok(());
        }
        let mut tx = db::begin(&self.pool, lane.into()).await?;
        let mut keys: Vec<KeyId> = undecided.iter().map(|c| c.task.api_key_id).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut payers = ledger::lock(&mut tx, &keys, &self.terms.time_zone).await?;
        if which == Try::Second {
            // The accounts are locked now, so the first try has either committed or never will.
            let ids: Vec<TaskId> = undecided.iter().map(|c| c.task.id).collect();
            let there = by_id(ledger::present(&mut tx, &ids).await?);
            undecided.retain_mut(|candidate| match there.get(&candidate.task.id) {
                Some(accepted) => {
                    candidate.decision = Decision::Accepted(*accepted);
                    false
                }
                None => true,
            });
        }
        let mut known = Known::read(&mut tx, &undecided, &self.waiters).await?;
        let decide = |c: &&mut Candidate| c.decide(&mut payers, &mut known, &self.waiters);
        let mut decisions: Vec<Decision> = undecided.iter().map(decide).collect();
        let mut granted: Vec<&mut Candidate> = undecided
            .iter_mut()
            .zip(&decisions)
            .filter(|(_, decision)| matches!(decision, Decision::Granted))
            .map(|(candidate, _)| &mut **candidate)
            .collect();
        if granted.is_empty() && known.joins.is_empty() {
            tx.rollback().await?;
        } else {
            let acceptance = Acceptance {
                patience: lane.into(),
                until: None,
            };
            let mut accepted = self.insert(&mut tx, &mut granted, acceptance).await?;
            // A retry may already have joined one of the new tasks.
            repeats::join(&mut tx, &known.joins).await?;
            tx.commit().await?;
            for (candidate, decision) in undecided.iter().zip(&mut decisions) {
                if let Some(accepted) = accepted.remove(&candidate.task.id) {
                    *decision = Decision::Accepted(accepted);
                }
            }
        }
        for (candidate, decision) in undecided.into_iter().zip(decisions) {
            candidate.decision = decision;
        }
        Ok(())
    }

    async fn insert(
        &self,
        conn: &mut PgConnection,
        candidates: &mut [&mut Candidate],
        acceptance: Acceptance,
    ) -> sqlx::Result<HashMap<TaskId, Accepted>> {
        for candidate in &mut *candidates {
            candidate.task.waiter = self.waiters.waiter_of(candidate.task.id);
        }
        let tasks: Vec<&NewTask> = candidates.iter().map(|c| &c.task).collect();
        if tasks.is_empty() {
            return Ok(HashMap::new());
        }
        let accepted = ledger::accept(conn, &tasks, &self.terms, acceptance).await?;
        if let Some(accepted) = accepted.first() {
            self.time.read(accepted.created_at);
        }
        Ok(by_id(accepted))
    }

    fn answer(&self, batch: Vec<Candidate>) -> Vec<Answer> {
        let answer = |candidate: Candidate| self.answer_one(candidate);
        batch.into_iter().map(answer).collect()
    }

    fn answer_one(&self, candidate: Candidate) -> Answer {
        let accepted = match candidate.decision {
            Decision::Accepted(accepted) => accepted,
            Decision::Joined(id) => return Ok(Submitted::Joined(id)),
            Decision::Refused(error) => {
                // The commit may have succeeded nevertheless.
                if matches!(error, SubmitError::Database(_)) {
                    candidate.inputs.keep();
                }
                return Err(error);
            }
            // Its row is missing although its hold was granted.
            Decision::Undecided | Decision::Granted => {
                let error = Arc::new(sqlx::Error::RowNotFound);
                return Err(SubmitError::Database(error));
            }
        };
        candidate.inputs.keep();
        let NewTask { id, waiter, .. } = candidate.task;
        if waiter.is_some() {
            // Its caller may have disconnected before the task existed.
            self.waiters.check(id);
        }
        // After an ambiguous commit, another worker may have claimed the task meanwhile.
        if let Some(Slot { permit, route }) = candidate.slot.filter(|_| accepted.is_untouched) {
            let assignment = Assignment {
                route: Some(route),
                ..Assignment::default()
            };
            let left = self
                .terms
                .deadline
                .saturating_sub(candidate.asked.elapsed());
            let task = candidate.task.claimed(accepted.created_at, left);
            let claimed = Claimed {
                claim: Claim { task, assignment },
                slot: permit,
            };
            // If the worker has stopped receiving, the lease runs out and the task is requeued.
            drop(self.claimed.send(claimed));
        }
        Ok(Submitted::New(id))
    }
}

fn by_id(accepted: Vec<Accepted>) -> HashMap<TaskId, Accepted> {
    let by_id = accepted.into_iter().map(|task| (task.id, task));
    by_id.collect()
}

/// Whether a single item of the batch may have caused the error.
fn is_of_one(error: &sqlx::Error) -> bool {
    matches!(trouble(error), Trouble::Refused | Trouble::Other)
}

/// Refuses those that are not decided yet.
fn refuse(candidates: &mut [Candidate], error: sqlx::Error) {
    let error = Arc::new(error);
    for candidate in candidates.iter_mut().filter(|c| c.is_undecided()) {
        candidate.decision = Decision::Refused(SubmitError::Database(Arc::clone(&error)));
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
