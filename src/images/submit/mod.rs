//! Accepts requests: one short transaction locks the accounts, finds repeats, holds the prices and
//! inserts the tasks. Requests that arrive while one is under way share the next.

mod candidate;
mod known;

use std::{collections::HashMap, slice, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use self::{
    candidate::{Candidate, Decision},
    known::Known,
};
use super::{Claimed, stored_inputs::StoredInputs};
use crate::{
    accounts::Caller,
    batch::{Batcher, Closed, Lane, Worked},
    billing::{Refusal, ledger},
    db::{self, Trouble, trouble},
    ids::{KeyId, TaskId},
    money::Cny,
    progress::{Loop, Progress},
    tasks::{
        Assignment, Claim, Request, Status, Task, repeats,
        store::{self, NewTask, Start, Terms},
        wait::Waiters,
    },
};

/// How many submissions may share a transaction.
const BATCH_MAX: usize = 256;
/// How many accounts with a lane of their own are handled at a time: each takes a connection.
const ALONE_MAX: usize = 4;
/// A request that took at least this long to accept may have been retried elsewhere. Clients retry after half a
/// second at the earliest.
const RETRIED_AFTER: Duration = Duration::from_millis(500);

/// A valid request for images.
#[derive(Debug)]
pub struct Generation {
    /// Who asks and pays.
    pub caller: Arc<Caller>,
    /// What to generate.
    pub request: Request,
    /// The request's objects in storage: deleted unless it becomes a task.
    pub inputs: StoredInputs,
    /// The price of one image.
    pub unit_price: Cny,
    /// Whether it is marked as a repeat.
    pub repeat: Repeat,
}

/// A request that is ready to be accepted.
#[derive(Debug)]
pub struct Submission {
    /// The id of the task, if it is a new one.
    pub id: TaskId,
    /// What it asks for.
    pub generation: Generation,
    /// The process in which its caller waits for it; `None`: the caller polls.
    pub waiter: Option<i32>,
    /// Identifies the request: see [`repeats::fingerprint`].
    pub fingerprint: Vec<u8>,
    /// For a retry: equal tasks that other processes say, or seem, to have lost the callers of.
    pub gone: Vec<TaskId>,
    /// The slot in which this process can begin the task at once, if any.
    pub slot: Option<Slot>,
}

/// A free slot of this process's worker.
#[derive(Debug)]
pub struct Slot {
    /// Frees the slot when dropped.
    pub permit: OwnedSemaphorePermit,
    /// The route that generates the task.
    pub route: String,
}

/// How a submission may repeat an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It is not marked as a repeat.
    No,
    /// It has an idempotency key: the same key within 24 hours means the same request.
    Key(String),
    /// The number of the retry, from 1, of a request without an idempotency key.
    Retry(u16),
}

/// The result of an accepted submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// A new task.
    New(TaskId),
    /// The task of an earlier request, which this one repeats.
    Joined(TaskId),
}

/// Why a submission was not accepted. Nothing is held and nothing will be generated.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The hold was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The key's limit of open tasks is reached.
    #[error("the API key has {limit} tasks open already, as many as it may")]
    Concurrency {
        /// The key's limit.
        limit: u32,
    },
    /// Its idempotency key belongs to a different request.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// Its caller left before it was accepted.
    #[error("the client disconnected before the request was accepted")]
    Abandoned,
    /// The database failed. If the connection broke during the commit, the task may exist nevertheless.
    #[error("the task could not be stored")]
    Database(#[source] Arc<sqlx::Error>),
}

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
    /// Determines when a month begins, for quotas.
    pub time_zone: String,
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
            Ok(tasks) => {
                attempt.succeeded();
                Ok(self.answer(batch, tasks))
            }
            Err(error) if trouble(&error) == Trouble::Unreachable => {
                refuse(&mut batch, error);
                Ok(self.answer(batch, Vec::new()))
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
        let tasks = match accepted.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(tasks) => tasks,
            Err(error) if is_of_one(&error) && batch.len() > 1 => {
                let mut tasks = Vec::new();
                for candidate in &mut batch {
                    let candidate = slice::from_mut(candidate);
                    match self.try_twice(candidate, Lane::Own, until).await {
                        Ok(task) => tasks.extend(task),
                        Err(error) => refuse(candidate, error),
                    }
                }
                tasks
            }
            Err(error) => {
                refuse(&mut batch, error);
                Vec::new()
            }
        };
        self.answer(batch, tasks)
    }

    /// When the caller that has waited longest must have an answer.
    fn patience_of(&self, batch: &[Candidate]) -> Instant {
        let asked = batch.iter().map(|candidate| candidate.asked).min();
        asked.unwrap_or_else(Instant::now) + self.pool.patience()
    }

    /// Decides every candidate and returns the tasks of those that were granted.
    ///
    /// If the connection is lost, the first try may have been committed nevertheless: the second try, with the
    /// same ids, finds its tasks. A locked account is waited for again only in a lane of its own.
    async fn try_twice(
        &self,
        candidates: &mut [Candidate],
        lane: Lane,
        until: Instant,
    ) -> sqlx::Result<Vec<Task>> {
        let first = self.transact(candidates, lane, Try::First);
        let error = match self.pool.within(left(until), first).await {
            Ok(tasks) => return Ok(tasks),
            Err(error) => error,
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

    async fn transact(
        &self,
        candidates: &mut [Candidate],
        lane: Lane,
        which: Try,
    ) -> sqlx::Result<Vec<Task>> {
        let mut tx = db::begin(&self.pool, lane.into()).await?;
        let mut keys: Vec<KeyId> = candidates.iter().map(|c| c.task.api_key_id).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut payers = ledger::lock(&mut tx, &keys, &self.time_zone).await?;
        if which == Try::Second {
            // The accounts are locked now, so the first try has either committed or never will.
            let ids: Vec<TaskId> = candidates.iter().map(|c| c.task.id).collect();
            let there = store::present(&mut tx, &ids).await?;
            if !there.is_empty() {
                tx.rollback().await?;
                return Ok(there);
            }
        }
        let mut known = Known::read(&mut tx, candidates, &self.waiters).await?;
        for candidate in candidates.iter_mut() {
            candidate.decide(&mut payers, &mut known, &self.waiters);
        }
        let granted: Vec<&mut Candidate> = candidates
            .iter_mut()
            .filter(|candidate| matches!(candidate.decision, Decision::Granted))
            .collect();
        if granted.is_empty() && known.joins.is_empty() {
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        let mut new_tasks = Vec::with_capacity(granted.len());
        for candidate in granted {
            candidate.task.waiter = self.waiters.waiter_of(candidate.task.id);
            new_tasks.push(&candidate.task);
        }
        ledger::hold(&mut tx, payers).await?;
        let tasks = store::insert(&mut tx, &new_tasks, self.terms).await?;
        // A retry may already have joined one of the new tasks.
        repeats::join(&mut tx, &known.joins).await?;
        if new_tasks.iter().any(|task| task.start == Start::Queued) {
            db::notify(&mut tx, store::QUEUED_CHANNEL, "").await?;
        }
        tx.commit().await?;
        Ok(tasks)
    }

    fn answer(&self, batch: Vec<Candidate>, tasks: Vec<Task>) -> Vec<Answer> {
        let mut tasks: HashMap<TaskId, Task> =
            tasks.into_iter().map(|task| (task.id, task)).collect();
        let answer = |candidate: Candidate| self.answer_one(candidate, &mut tasks);
        batch.into_iter().map(answer).collect()
    }

    fn answer_one(&self, candidate: Candidate, tasks: &mut HashMap<TaskId, Task>) -> Answer {
        let NewTask { id, waiter, .. } = candidate.task;
        match candidate.decision {
            Decision::Refused(error) => {
                // The commit may have succeeded nevertheless.
                if matches!(error, SubmitError::Database(_)) {
                    candidate.inputs.keep();
                }
                return Err(error);
            }
            Decision::Joined(id) => return Ok(Submitted::Joined(id)),
            Decision::Undecided | Decision::Granted => {}
        }
        candidate.inputs.keep();
        let not_inserted = || SubmitError::Database(Arc::new(sqlx::Error::RowNotFound));
        let task = tasks.remove(&id).ok_or_else(not_inserted)?;
        if waiter.is_some() {
            // Its caller may have disconnected before the task existed.
            self.waiters.check(id);
        }
        // After an ambiguous commit, another worker may have claimed the task meanwhile.
        let untouched = task.status == Status::Running && task.fence == store::FIRST_FENCE;
        if let Some(Slot { permit, route }) = candidate.slot.filter(|_| untouched) {
            let assignment = Assignment {
                route: Some(route),
                ..Assignment::default()
            };
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

/// Whether a single item of the batch may have caused the error.
fn is_of_one(error: &sqlx::Error) -> bool {
    matches!(trouble(error), Trouble::Refused | Trouble::Other)
}

fn refuse(candidates: &mut [Candidate], error: sqlx::Error) {
    let error = Arc::new(error);
    for candidate in candidates {
        candidate.decision = Decision::Refused(SubmitError::Database(Arc::clone(&error)));
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
