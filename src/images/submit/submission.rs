//! What is submitted, and what becomes of it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    accounts::Caller, billing::Refusal, ids::TaskId, images::stored_inputs::StoredInputs,
    money::Cny, tasks::Request,
};

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
    /// Identifies the request: see [`fingerprint`](crate::tasks::repeats::fingerprint).
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
