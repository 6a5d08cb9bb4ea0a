//! Accepting requests: one short transaction locks the accounts, finds repeats, holds the prices and
//! inserts the tasks. Requests that come while one is under way share the next.

use std::{collections::HashMap, slice, sync::Arc};

use sqlx::{PgConnection, PgPool};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Claimed, stored_inputs::StoredInputs};
use crate::{
    accounts::Caller,
    batch::Batcher,
    billing::{Payers, Refusal, ledger},
    ids::{self, KeyId, TaskId},
    money::Cny,
    tasks::{
        Assignment, Request, Status, Task, repeats,
        store::{self, NewTask, Start, Terms},
    },
};

/// How many submissions may share a transaction.
const BATCH_MAX: usize = 256;

/// A request, ready to be accepted.
#[derive(Debug)]
pub struct Submission {
    /// Of the task, if it is a new one.
    pub id: TaskId,
    pub caller: Arc<Caller>,
    pub request: Request,
    /// What of the request is in storage: kept if it becomes a task.
    pub inputs: StoredInputs,
    pub unit_price: Cny,
    pub repeat: Repeat,
    /// Where this process's worker can begin it at once, if it can.
    pub place: Option<Place>,
}

/// A free place of this process's worker.
#[derive(Debug)]
pub struct Place {
    pub slot: OwnedSemaphorePermit,
    /// Over which it is drawn.
    pub route: Option<String>,
}

/// How a submission may turn out to be the same as an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It does not say that it is one.
    No,
    /// It names itself: the same name within 24 hours is the same request.
    Key(String),
    /// It says that it is a retry of a request that had no name.
    Retry,
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    New(TaskId),
    /// The task of an earlier request, which this one repeats.
    Joined(TaskId),
}

/// Why a submission was not accepted. Nothing was held and nothing will be drawn.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the API key has {limit} tasks open already, as many as it may")]
    Concurrency { limit: u32 },
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    #[error("the task could not be stored")]
    Database(#[source] Arc<sqlx::Error>),
}

/// Accepts submissions, in batches.
pub type Submitter = Batcher<Submission, Result<Submitted, SubmitError>>;

/// Starts accepting submissions. Those with a place go to the worker as `claimed`: from here and not
/// from whoever submitted them, who may have hung up meanwhile.
pub fn start(
    pool: PgPool,
    claimed: mpsc::UnboundedSender<Claimed>,
    terms: Terms,
    time_zone: String,
) -> Submitter {
    let desk = Arc::new(Desk {
        pool,
        claimed,
        terms,
        time_zone,
    });
    Batcher::start(BATCH_MAX, move |batch| {
        let desk = Arc::clone(&desk);
        async move { desk.accept(batch).await }
    })
}

struct Desk {
    pool: PgPool,
    claimed: mpsc::UnboundedSender<Claimed>,
    terms: Terms,
    time_zone: String,
}

/// A submission on its way through the transaction.
struct Candidate {
    task: NewTask,
    inputs: StoredInputs,
    repeat: Repeat,
    concurrent_requests: Option<u32>,
    verdict: Verdict,
}

enum Verdict {
    Undecided,
    Granted,
    Joined(TaskId),
    Refused(SubmitError),
}

impl Desk {
    async fn accept(&self, batch: Vec<Submission>) -> Vec<Result<Submitted, SubmitError>> {
        let mut places = Vec::with_capacity(batch.len());
        let mut candidates = Vec::with_capacity(batch.len());
        for mut submission in batch {
            let place = submission.place.take();
            let start = place
                .as_ref()
                .map_or(Start::Queued, |place| Start::Claimed {
                    route: place.route.clone(),
                });
            places.push(place);
            candidates.push(Candidate::new(submission, start));
        }
        let tasks = self.decide(&mut candidates).await;
        let mut tasks: HashMap<TaskId, Task> =
            tasks.into_iter().map(|task| (task.id, task)).collect();
        candidates
            .into_iter()
            .zip(places)
            .map(|(candidate, place)| self.answer(candidate, &mut tasks, place))
            .collect()
    }

    /// Gives every candidate its verdict, and answers the tasks of those that were granted. What the
    /// database refuses together is tried one by one, so that no candidate spoils another's chance.
    async fn decide(&self, candidates: &mut [Candidate]) -> Vec<Task> {
        let error = match self.transact(candidates).await {
            Ok(tasks) => return tasks,
            Err(error) => error,
        };
        // The commit may have gone through all the same: what is there was accepted.
        match self.present(candidates).await {
            Ok(tasks) if !tasks.is_empty() => return tasks,
            _ => {}
        }
        let mut tasks = Vec::new();
        if candidates.len() > 1 && error.as_database_error().is_some() {
            for candidate in candidates {
                tasks.extend(Box::pin(self.decide(slice::from_mut(candidate))).await);
            }
            return tasks;
        }
        let error = Arc::new(error);
        for candidate in candidates {
            candidate.verdict = Verdict::Refused(SubmitError::Database(Arc::clone(&error)));
        }
        tasks
    }

    async fn transact(&self, candidates: &mut [Candidate]) -> sqlx::Result<Vec<Task>> {
        let mut tx = self.pool.begin().await?;
        let mut keys: Vec<KeyId> = candidates.iter().map(|c| c.task.api_key_id).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut payers = ledger::lock(&mut tx, &keys, &self.time_zone).await?;
        let mut known = Known::read(&mut tx, candidates).await?;
        for candidate in candidates.iter_mut() {
            candidate.decide(&mut payers, &mut known);
        }
        let granted: Vec<&NewTask> = candidates
            .iter()
            .filter(|candidate| matches!(candidate.verdict, Verdict::Granted))
            .map(|candidate| &candidate.task)
            .collect();
        if granted.is_empty() {
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        ledger::hold(&mut tx, payers).await?;
        let tasks = store::insert(&mut tx, &granted, self.terms).await?;
        if granted.iter().any(|task| task.start == Start::Queued) {
            store::notify_queued(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(tasks)
    }

    fn answer(
        &self,
        candidate: Candidate,
        tasks: &mut HashMap<TaskId, Task>,
        place: Option<Place>,
    ) -> Result<Submitted, SubmitError> {
        let id = candidate.task.id;
        match candidate.verdict {
            Verdict::Refused(error) => {
                // The commit may have gone through all the same.
                if matches!(error, SubmitError::Database(_)) {
                    candidate.inputs.keep();
                }
                return Err(error);
            }
            Verdict::Joined(id) => return Ok(Submitted::Joined(id)),
            Verdict::Undecided | Verdict::Granted => {}
        }
        candidate.inputs.keep();
        let not_inserted = || SubmitError::Database(Arc::new(sqlx::Error::RowNotFound));
        let task = tasks.remove(&id).ok_or_else(not_inserted)?;
        // After an ambiguous commit another worker may have found the task meanwhile.
        let untouched = task.status == Status::Running && task.fence == store::FIRST_FENCE;
        if let Some(Place { slot, route }) = place.filter(|_| untouched) {
            let assignment = Assignment {
                route,
                ..Assignment::default()
            };
            let claimed = Claimed {
                task,
                assignment,
                slot,
            };
            // A worker that has stopped listening leaves the task to whoever finds its lease run out.
            drop(self.claimed.send(claimed));
        }
        Ok(Submitted::New(id))
    }

    async fn present(&self, candidates: &[Candidate]) -> sqlx::Result<Vec<Task>> {
        let ids: Vec<TaskId> = candidates
            .iter()
            .map(|candidate| candidate.task.id)
            .collect();
        store::present(&mut *self.pool.acquire().await?, &ids).await
    }
}

impl Candidate {
    fn new(submission: Submission, start: Start) -> Self {
        let Submission {
            id,
            caller,
            request,
            inputs,
            unit_price,
            repeat,
            ..
        } = submission;
        let task = NewTask {
            id,
            account_id: caller.account_id,
            api_key_id: caller.key_id,
            fingerprint: repeats::fingerprint(&request),
            idempotency_key: match &repeat {
                Repeat::Key(key) => Some(key.clone()),
                Repeat::No | Repeat::Retry => None,
            },
            request,
            unit_price,
            file_id: ids::credential_id(),
            start,
        };
        let concurrent_requests = caller.concurrent_requests;
        Self {
            task,
            inputs,
            repeat,
            concurrent_requests,
            verdict: Verdict::Undecided,
        }
    }

    /// Joins an earlier request, or holds the price, or refuses.
    fn decide(&mut self, payers: &mut Payers, known: &mut Known) {
        self.verdict = match known.earlier(&self.task, &self.repeat) {
            Some(Ok(task_id)) => Verdict::Joined(task_id),
            Some(Err(error)) => Verdict::Refused(error),
            None => match self.hold(payers, known) {
                Ok(()) => Verdict::Granted,
                Err(error) => Verdict::Refused(error),
            },
        };
    }

    fn hold(&self, payers: &mut Payers, known: &mut Known) -> Result<(), SubmitError> {
        let task = &self.task;
        let open = known.open.entry(task.api_key_id).or_default();
        if let Some(limit) = self.concurrent_requests
            && *open >= i64::from(limit)
        {
            return Err(SubmitError::Concurrency { limit });
        }
        payers.hold(
            task.api_key_id,
            task.id,
            task.unit_price * u32::from(task.request.n),
        )?;
        *open += 1;
        known.remember(task);
        Ok(())
    }
}

/// What a batch has to know of earlier tasks, those of the batch itself included.
#[derive(Default)]
struct Known {
    named: HashMap<(KeyId, String), (TaskId, Vec<u8>)>,
    same: HashMap<(KeyId, Vec<u8>), TaskId>,
    open: HashMap<KeyId, i64>,
}

impl Known {
    /// Asks only what some candidate makes necessary: mostly nothing.
    async fn read(conn: &mut PgConnection, candidates: &[Candidate]) -> sqlx::Result<Self> {
        let mut known = Self::default();
        let (mut named_keys, mut names) = (Vec::new(), Vec::new());
        let (mut same_keys, mut fingerprints) = (Vec::new(), Vec::new());
        for Candidate {
            task,
            repeat,
            concurrent_requests,
            ..
        } in candidates
        {
            match repeat {
                Repeat::No => {}
                Repeat::Key(name) => {
                    named_keys.push(task.api_key_id);
                    names.push(name.clone());
                }
                Repeat::Retry => {
                    same_keys.push(task.api_key_id);
                    fingerprints.push(task.fingerprint.clone());
                }
            }
            if concurrent_requests.is_some() && !known.open.contains_key(&task.api_key_id) {
                let open = repeats::open_of(conn, task.api_key_id).await?;
                known.open.insert(task.api_key_id, open);
            }
        }
        if !names.is_empty() {
            for found in repeats::named(conn, &named_keys, &names).await? {
                let name = (found.api_key_id, found.idempotency_key);
                known.named.insert(name, (found.task_id, found.fingerprint));
            }
        }
        if !fingerprints.is_empty() {
            for found in repeats::same(conn, &same_keys, &fingerprints).await? {
                known
                    .same
                    .insert((found.api_key_id, found.fingerprint), found.task_id);
            }
        }
        Ok(known)
    }

    fn earlier(&self, task: &NewTask, repeat: &Repeat) -> Option<Result<TaskId, SubmitError>> {
        match repeat {
            Repeat::No => None,
            Repeat::Key(name) => {
                let (id, fingerprint) = self.named.get(&(task.api_key_id, name.clone()))?;
                let same = *fingerprint == task.fingerprint;
                Some(if same {
                    Ok(*id)
                } else {
                    Err(SubmitError::KeyReused)
                })
            }
            Repeat::Retry => self
                .same
                .get(&(task.api_key_id, task.fingerprint.clone()))
                .copied()
                .map(Ok),
        }
    }

    fn remember(&mut self, task: &NewTask) {
        if let Some(name) = &task.idempotency_key {
            let name = (task.api_key_id, name.clone());
            self.named.insert(name, (task.id, task.fingerprint.clone()));
        }
        self.same
            .insert((task.api_key_id, task.fingerprint.clone()), task.id);
    }
}
