//! Accepting requests: one short transaction locks the accounts, finds repeats, holds the prices and
//! inserts the tasks. Requests that come while one is under way share the next.

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
    batch::{Batcher, Closed, Line, Worked},
    billing::{Refusal, ledger},
    db::{self, Trouble, trouble},
    ids::{KeyId, TaskId},
    money::Cny,
    progress::{Loop, Progress},
    tasks::{
        Assignment, Request, Status, Task, repeats,
        store::{self, NewTask, Start, Terms},
        wait::Waiters,
    },
};

/// How many submissions may share a transaction.
const BATCH_MAX: usize = 256;
/// How many accounts that kept others waiting are worked on at a time: each takes a connection.
const ALONE_MAX: usize = 4;

/// A request, ready to be accepted.
#[derive(Debug)]
pub struct Submission {
    /// Of the task, if it is a new one. Who is going to wait for it has subscribed to it already.
    pub id: TaskId,
    pub caller: Arc<Caller>,
    pub request: Request,
    /// What of the request is in storage: kept if it becomes a task.
    pub inputs: StoredInputs,
    pub unit_price: Cny,
    pub repeat: Repeat,
    /// Where this process's worker can begin it at once, if it can.
    pub slot: Option<Slot>,
}

/// A free slot of this process's worker.
#[derive(Debug)]
pub struct Slot {
    pub permit: OwnedSemaphorePermit,
    /// Over which it is generated.
    pub route: String,
}

/// How a submission may turn out to be the same as an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It does not say that it is one.
    No,
    /// It names itself: the same name within 24 hours is the same request.
    Key(String),
    /// It says that it is the first, second, … retry of a request that had no name.
    Retry(u16),
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    New(TaskId),
    /// The task of an earlier request, which this one repeats.
    Joined(TaskId),
}

/// Why a submission was not accepted. Nothing was held and nothing will be generated.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the API key has {limit} tasks open already, as many as it may")]
    Concurrency { limit: u32 },
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// If the connection was lost in the last moment, it may have been accepted all the same.
    #[error("the task could not be stored")]
    Database(#[source] Arc<sqlx::Error>),
}

type Answer = Result<Submitted, SubmitError>;

/// Accepts submissions, in batches.
#[derive(Clone)]
pub struct Submitter(Batcher<Candidate, Answer>);

impl Submitter {
    pub async fn call(&self, submission: Submission) -> Result<Answer, Closed> {
        self.0.call(Candidate::new(submission)).await
    }
}

/// What submissions are accepted with.
pub struct SubmitBatch {
    pub pool: db::Pool,
    pub waiters: Waiters,
    pub progress: Progress,
    /// Those with a slot go to the worker from here and not from whoever submitted them, who may have hung
    /// up meanwhile.
    pub claimed: mpsc::UnboundedSender<Claimed>,
    pub terms: Terms,
    pub time_zone: String,
}

/// Starts accepting submissions.
pub fn start(submit: SubmitBatch) -> Submitter {
    let submit = Arc::new(submit);
    let alone = Arc::new(Semaphore::new(ALONE_MAX));
    let account_of = |candidate: &Candidate| candidate.task.account_id;
    Submitter(Batcher::start_with_lines(
        BATCH_MAX,
        account_of,
        move |batch, line| {
            let (submit, alone) = (Arc::clone(&submit), Arc::clone(&alone));
            async move {
                match line {
                    Line::Shared => submit.accept_together(batch).await,
                    Line::Own => Ok(submit.accept_alone(batch, &alone).await),
                }
            }
        },
    ))
}

/// Whether a transaction is the first try of its batch, or may find that the first was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    First,
    Second,
}

impl SubmitBatch {
    /// All of a batch, or none: then it has to be taken apart.
    async fn accept_together(&self, mut batch: Vec<Candidate>) -> Worked<Candidate, Answer> {
        let attempt = self.progress.begin(Loop::Submit);
        let until = self.patience_of(&batch);
        match self.try_twice(&mut batch, Line::Shared, until).await {
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
                    "a batch of submissions is taken apart"
                );
                Err(batch)
            }
        }
    }

    /// Those of one account, which may wait for its lock. What the database refuses together is tried one by
    /// one, so that no candidate spoils another's chance.
    async fn accept_alone(&self, mut batch: Vec<Candidate>, alone: &Semaphore) -> Vec<Answer> {
        let until = self.patience_of(&batch);
        let accepted = async {
            let _turn = alone.acquire().await;
            self.try_twice(&mut batch, Line::Own, until).await
        };
        let accepted = tokio::time::timeout_at(until, accepted).await;
        let tasks = match accepted.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(tasks) => tasks,
            Err(error) if is_of_one(&error) && batch.len() > 1 => {
                let mut tasks = Vec::new();
                for candidate in &mut batch {
                    let candidate = slice::from_mut(candidate);
                    match self.try_twice(candidate, Line::Own, until).await {
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

    /// When whoever has waited longest must have an answer.
    fn patience_of(&self, batch: &[Candidate]) -> Instant {
        let asked = batch.iter().map(|candidate| candidate.asked).min();
        asked.unwrap_or_else(Instant::now) + self.pool.patience()
    }

    /// Gives every candidate its decision, and answers the tasks of those that were granted.
    ///
    /// Where the connection is lost the first try may have been committed all the same: the second, with the same
    /// ids, sees to that. What others hold is waited for twice in a line of its own, and not here else.
    async fn try_twice(
        &self,
        candidates: &mut [Candidate],
        line: Line,
        until: Instant,
    ) -> sqlx::Result<Vec<Task>> {
        let first = self.transact(candidates, line, Try::First);
        let error = match self.pool.within(left(until), first).await {
            Ok(tasks) => return Ok(tasks),
            Err(error) => error,
        };
        let again = match trouble(&error) {
            Trouble::Unreachable => true,
            Trouble::Contended => line == Line::Own,
            Trouble::Refused | Trouble::Other => false,
        };
        if !again || left(until).is_zero() {
            return Err(error);
        }
        let second = self.transact(candidates, line, Try::Second);
        self.pool.within(left(until), second).await
    }

    async fn transact(
        &self,
        candidates: &mut [Candidate],
        line: Line,
        which: Try,
    ) -> sqlx::Result<Vec<Task>> {
        let mut tx = db::begin(&self.pool, line.into()).await?;
        let mut keys: Vec<KeyId> = candidates.iter().map(|c| c.task.api_key_id).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut payers = ledger::lock(&mut tx, &keys, &self.time_zone).await?;
        if which == Try::Second {
            // Now that the accounts are locked, the first try is either there or will never be.
            let ids: Vec<TaskId> = candidates.iter().map(|c| c.task.id).collect();
            let there = store::present(&mut tx, &ids).await?;
            if !there.is_empty() {
                tx.rollback().await?;
                return Ok(there);
            }
        }
        let mut known = Known::read(&mut tx, candidates, &self.waiters).await?;
        for candidate in candidates.iter_mut() {
            candidate.decide(&mut payers, &mut known);
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
        // One of these may have been given to a retry already.
        repeats::join(&mut tx, &known.joins).await?;
        if new_tasks.iter().any(|task| task.start == Start::Queued) {
            store::notify_queued(&mut tx).await?;
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
                // The commit may have gone through all the same.
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
            // Its caller may have hung up before the task was there to be told.
            self.waiters.check(id);
        }
        // After an ambiguous commit another worker may have found the task meanwhile.
        let untouched = task.status == Status::Running && task.fence == store::FIRST_FENCE;
        if let Some(Slot { permit, route }) = candidate.slot.filter(|_| untouched) {
            let assignment = Assignment {
                route: Some(route),
                ..Assignment::default()
            };
            let claimed = Claimed {
                task,
                assignment,
                slot: permit,
            };
            // A worker that has stopped listening leaves the task to whoever finds its lease run out.
            drop(self.claimed.send(claimed));
        }
        Ok(Submitted::New(id))
    }
}

/// Whether one of several may be to blame.
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
