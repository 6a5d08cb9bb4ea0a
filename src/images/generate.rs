//! Accepts a request for images and, if its caller waits, waits for them. Waiting for the images is the same as not
//! waiting, and then waiting.

use std::{sync::Arc, time::Duration};

use super::{
    Images,
    admission::{Mode, Overload},
    stored_inputs::StoredInputs,
    submit::{Repeat, Submission, SubmitError, Submitted},
};
use crate::{
    accounts::Caller,
    batch,
    ids::{self, TaskId},
    money::Cny,
    tasks::{Request, Summary, wait::Waited},
};

/// A task ends at its deadline; reports of its end may take this much longer.
const END_GRACE: Duration = Duration::from_secs(8);

/// A valid request for images.
#[derive(Debug)]
pub struct Generation {
    pub caller: Arc<Caller>,
    pub request: Request,
    /// Its inputs in storage, deleted unless the request is accepted.
    pub inputs: StoredInputs,
    pub unit_price: Cny,
    pub repeat: Repeat,
}

/// Why a request was not accepted, or its end cannot be reported.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("the gateway is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Overload(#[from] Overload),
    #[error(transparent)]
    Closed(#[from] batch::Closed),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the accepted task could not be looked up")]
    Database(#[from] sqlx::Error),
    #[error("the end of the task is not known yet")]
    EndUnknown(TaskId),
}

impl Images {
    /// Accepts a request and waits for the end of its task.
    pub async fn generate(&self, generation: Generation) -> Result<Arc<Summary>, GenerateError> {
        if self.shutdown.has_begun() {
            return Err(GenerateError::ShuttingDown);
        }
        let _waiting = self
            .admission
            .enter(&self.config, generation.caller.account_id)?;
        let id = ids::row_id();
        // Before the task can end.
        let mut subscription = self.waiters.subscribe(id);
        let task = match self.submit(id, generation, Mode::Sync).await? {
            Submitted::New(id) => id,
            Submitted::Joined(earlier) => {
                subscription = self.waiters.subscribe(earlier);
                self.waiters.look_at(&self.pool, &[earlier]).await?;
                earlier
            }
        };
        let longest = self.config.tasks.deadline() + END_GRACE;
        match subscription.ended(longest).await {
            Waited::Ended(task) => Ok(task),
            Waited::Dismissed => Err(GenerateError::ShuttingDown),
            Waited::TooLong => Err(GenerateError::EndUnknown(task)),
        }
    }

    /// Accepts a request whose caller polls. Returns the id of its task.
    pub async fn queue(&self, generation: Generation) -> Result<TaskId, GenerateError> {
        match self.submit(ids::row_id(), generation, Mode::Async).await? {
            Submitted::New(id) | Submitted::Joined(id) => Ok(id),
        }
    }

    async fn submit(
        &self,
        id: TaskId,
        generation: Generation,
        mode: Mode,
    ) -> Result<Submitted, GenerateError> {
        // Other gateways on a shared database may run the task; a private database stops with this process.
        if self.shutdown.has_begun() && self.config.database.url.is_none() {
            return Err(GenerateError::ShuttingDown);
        }
        let Generation {
            caller,
            request,
            inputs,
            unit_price,
            repeat,
        } = generation;
        let slot = self.admission.slot(self, &request);
        let queued = match &slot {
            Some(_) => None,
            None => Some(
                self.admission
                    .enqueue(self, caller.account_id, &request, mode)?,
            ),
        };
        let submission = Submission {
            id,
            caller,
            request,
            inputs,
            unit_price,
            repeat,
            slot,
        };
        let submitted = self.submitter.call(submission).await?;
        if let (Some(line), false) = (queued, matches!(submitted, Ok(Submitted::New(_)))) {
            self.admission.backlog.remove(&line);
        }
        Ok(submitted?)
    }
}
