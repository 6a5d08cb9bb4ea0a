//! Accepts a request for images and, if its caller waits, waits for them. Waiting for the images is the same as not
//! waiting, and then waiting.

use std::{sync::Arc, time::Duration};

use super::{
    Images,
    admission::{Mode, Overload},
    request::ResponseFormat,
    submit::{Generation, Repeat, Submission, SubmitError, Submitted},
};
use crate::{
    batch, db,
    ids::{self, KeyId, TaskId},
    storage::Expectation,
    tasks::{
        Summary,
        repeats::{self, Same},
        wait::Waited,
    },
};

/// A task ends at its deadline; reports of its end may take this much longer.
const END_GRACE: Duration = Duration::from_secs(8);

/// Why a request was not accepted, or its end cannot be reported.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The process accepts nothing new.
    #[error("the gateway is shutting down")]
    ShuttingDown,
    /// There is too much to do already.
    #[error(transparent)]
    Overload(#[from] Overload),
    /// The loop that accepts submissions has ended.
    #[error(transparent)]
    Closed(#[from] batch::Closed),
    /// The submission was refused or could not be stored.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The task was accepted, but its row could not be read.
    #[error("the accepted task could not be looked up")]
    Database(#[from] sqlx::Error),
    /// The request has no fingerprint, so nothing was submitted.
    #[error("the request could not be serialized")]
    Fingerprint(#[from] serde_json::Error),
    /// The task was accepted and continues, but its caller has waited for as long as it may.
    #[error("the end of the task is not known yet")]
    EndUnknown(TaskId),
}

/// The ended task of a request that waited for it.
pub struct Generated {
    /// How it ended.
    pub task: Arc<Summary>,
    /// Keeps its images in memory if they are to be sent as base64.
    pub expectation: Option<Expectation>,
}

impl Images {
    /// Accepts a request and waits for the end of its task.
    pub async fn generate(
        &self,
        generation: Generation,
        format: ResponseFormat,
    ) -> Result<Generated, GenerateError> {
        if self.shutdown.has_begun() {
            return Err(GenerateError::ShuttingDown);
        }
        let _waiting = self
            .admission
            .enter(&self.config, generation.caller.account_id)?;
        let id = ids::row_id();
        // Before the task can end.
        let mut subscription = self.waiters.subscribe(id);
        let expect = |id| {
            let is_inline = format == ResponseFormat::B64Json;
            is_inline.then(|| self.storage.expect(id))
        };
        let mut expectation = expect(id);
        let task = match self.submit(id, generation, Mode::Sync).await? {
            Submitted::New(id) => id,
            Submitted::Joined(earlier) => {
                subscription = self.waiters.subscribe(earlier);
                expectation = expect(earlier);
                self.waiters.look_at(&self.pool, &[earlier]).await?;
                earlier
            }
        };
        let longest = self.config.tasks.deadline() + END_GRACE;
        match subscription.ended(longest).await {
            Waited::Ended(task) => Ok(Generated { task, expectation }),
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
            caller, request, ..
        } = &generation;
        let fingerprint = repeats::fingerprint(request)?;
        let gone = match &generation.repeat {
            Repeat::No | Repeat::Key(_) => Vec::new(),
            Repeat::Retry(number) => {
                let gone = self.gone(id, caller.key_id, &fingerprint, *number).await;
                gone.map_err(|error| SubmitError::Database(Arc::new(error)))?
            }
        };
        let slot = self.admission.slot(self, request);
        let queued = match &slot {
            Some(_) => None,
            None => Some(
                self.admission
                    .enqueue(self, caller.account_id, request, mode)?,
            ),
        };
        let submission = Submission {
            id,
            generation,
            waiter: self.waiters.waiter_of(id),
            fingerprint,
            gone,
            slot,
        };
        let submitted = self.submitter.call(submission).await?;
        if let Ok(Submitted::New(id) | Submitted::Joined(id)) = &submitted {
            tracing::Span::current().record("task.id", tracing::field::display(id));
        }
        if let (Some(line), false) = (queued, matches!(submitted, Ok(Submitted::New(_)))) {
            self.admission.backlog.remove(&line);
        }
        Ok(submitted?)
    }

    /// The tasks that a retry may join although the database says that their callers wait in other processes.
    /// These are only asked if the retry would find no other task.
    async fn gone(
        &self,
        id: TaskId,
        key: KeyId,
        fingerprint: &[u8],
        number: u16,
    ) -> sqlx::Result<Vec<TaskId>> {
        let same = async {
            let mut conn = db::acquire(&self.pool).await?;
            repeats::same(&mut conn, &[key], &[fingerprint.to_vec()]).await
        };
        let mut same = self.pool.in_time(same).await?;
        same.retain(|same| same.joined < repeats::number(number));
        let waits = self.waiters.has(id);
        let lost = |same: &Same| same.waiter.is_some() == waits && !same.is_awaited(&self.waiters);
        if same.iter().any(lost) {
            return Ok(Vec::new());
        }
        let here = self.waiters.process();
        self.inquiries.gone(&self.pool, &same, here).await
    }
}
