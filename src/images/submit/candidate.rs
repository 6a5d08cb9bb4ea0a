//! A submission on its way through the transaction, and the decision about it.

use tokio::time::Instant;

use super::{Generation, Known, RETRIED_AFTER, Repeat, Slot, Submission, SubmitError};
use crate::{
    billing::{
        Payers,
        ledger::{Accepted, NewTask, Start},
    },
    ids::{self, TaskId},
    images::{run::requirements, stored_inputs::StoredInputs},
    tasks::{repeats, wait::Waiters},
};

/// A submission, the task that it would become, and the decision about it.
pub(super) struct Candidate {
    /// The row to insert.
    pub(super) task: NewTask,
    /// Its inputs in storage, deleted unless they are kept.
    pub(super) inputs: StoredInputs,
    /// Whether it is marked as a repeat.
    pub(super) repeat: Repeat,
    /// Equal tasks whose callers are gone.
    pub(super) gone: Vec<TaskId>,
    /// `None`: no limit.
    pub(super) concurrent_requests: Option<u32>,
    /// The slot to begin in; `None`: it waits in the queue.
    pub(super) slot: Option<Slot>,
    /// When its caller submitted it.
    pub(super) asked: Instant,
    /// What is decided so far.
    pub(super) decision: Decision,
}

/// What becomes of a candidate.
pub(super) enum Decision {
    /// Nothing was found or refused yet.
    Undecided,
    /// The price is held; the task is to be inserted in the same transaction.
    Granted,
    /// The task exists.
    Accepted(Accepted),
    /// It repeats the request of this task.
    Joined(TaskId),
    /// Nothing is held or inserted for it.
    Refused(SubmitError),
}

impl Candidate {
    /// An undecided candidate, submitted now.
    pub(super) fn new(submission: Submission) -> Self {
        let Submission {
            id,
            generation,
            waiter,
            fingerprint,
            gone,
            slot,
        } = submission;
        let Generation {
            caller,
            request,
            inputs,
            unit_price,
            repeat,
        } = generation;
        let start = slot.as_ref().map_or(Start::Queued, |slot| Start::Claimed {
            route: slot.route.clone(),
        });
        let task = NewTask {
            id,
            account_id: caller.account_id,
            api_key_id: caller.key_id,
            fingerprint,
            idempotency_key: match &repeat {
                Repeat::Key(key) => Some(key.clone()),
                Repeat::No | Repeat::Retry(_) => None,
            },
            requirements: requirements(&request).column(),
            request,
            unit_price,
            file_id: ids::credential_id().into(),
            start,
            waiter,
            joined: match repeat {
                Repeat::Retry(number) => repeats::number(number),
                Repeat::No | Repeat::Key(_) => 0,
            },
        };
        Self {
            task,
            inputs,
            repeat,
            gone,
            concurrent_requests: caller.concurrent_requests,
            slot,
            asked: Instant::now(),
            decision: Decision::Undecided,
        }
    }

    pub(super) fn is_undecided(&self) -> bool {
        matches!(self.decision, Decision::Undecided)
    }

    /// Whether only its price decides: it repeats nothing, and its key may have any number of open tasks.
    pub(super) fn is_plain(&self, waiters: &Waiters) -> bool {
        self.repeat == Repeat::No
            && self.concurrent_requests.is_none()
            && !self.is_abandoned(waiters)
    }

    /// Decides: joins an earlier request, holds the price, or refuses.
    pub(super) fn decide(
        &self,
        payers: &mut Payers,
        known: &mut Known,
        waiters: &Waiters,
    ) -> Decision {
        match known.earlier(self) {
            Some(Ok(task_id)) => Decision::Joined(task_id),
            Some(Err(error)) => Decision::Refused(error),
            None if self.is_abandoned(waiters) => Decision::Refused(SubmitError::Abandoned),
            None => match self.hold(payers, known) {
                Ok(()) => Decision::Granted,
                Err(error) => Decision::Refused(error),
            },
        }
    }

    /// Whether its caller has left and may have retried at another process, which did not find this request yet.
    fn is_abandoned(&self, waiters: &Waiters) -> bool {
        self.task.waiter.is_some()
            && self.task.idempotency_key.is_none()
            && self.asked.elapsed() >= RETRIED_AFTER
            && !waiters.has(self.task.id)
    }

    fn hold(&self, payers: &mut Payers, known: &mut Known) -> Result<(), SubmitError> {
        let task = &self.task;
        let open = known.open.entry(task.api_key_id).or_default();
        if let Some(limit) = self.concurrent_requests
            && *open >= i64::from(limit)
        {
            return Err(SubmitError::Concurrency { limit });
        }
        payers.hold(task.api_key_id, task.unit_price * u32::from(task.request.n))?;
        *open += 1;
        known.remember(task);
        Ok(())
    }
}
