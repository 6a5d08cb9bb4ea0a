//! One attempt at a claimed task: prepares its inputs, has the route's backend generate, stores the
//! images. Holds no database connection meanwhile.

use std::{collections::BTreeMap, error::Error, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::{
    adopt::{self, Adopted},
    inputs::{self, InputError, Inputs},
    retry::{self, RetryContext, failed},
    sink::StorageSink,
};
use crate::{
    app::App,
    backend::{
        BackendError, Catalog, GenerateRequest, Permit, SETTLE_TIME,
        catalog::{Model, Requirements, Route},
    },
    failure::Class,
    tasks::{Assignment, Attempt, Claim, Ending, FailureKind, Image, Outcome, Request, Task},
};

/// For telling an upstream that nobody waits for a job any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of an attempt.
#[derive(Debug)]
pub enum Ran {
    /// The task ends now.
    Ended(Ending),
    /// The attempt failed; the task is retried after `wait`.
    Again {
        /// The attempt that failed.
        attempt: Attempt,
        /// From now until the next one.
        wait: Duration,
    },
    /// No call was made: the time left, the route's circuit or storage does not allow one now.
    NotBegun,
}

/// What a task requires of a route.
pub fn requirements(request: &Request) -> Requirements {
    Requirements {
        references: request.references.len(),
        mask: request.mask.is_some(),
    }
}

/// Generates a task over its assigned route, within its deadline. Images delivered before a failure
/// count, and then nothing is retried.
#[tracing::instrument(name = "attempt", skip_all, fields(fence = claim.task.fence, route = claim.assignment.route))]
pub async fn run(app: &App, claim: &Claim) -> Ran {
    let Claim { task, assignment } = claim;
    let deadline = Instant::now() + task.left;
    let adopted = adopt::adopt(app, claim).await;
    if adopted.len() == usize::from(task.request.n) {
        return Ran::Ended(Ending::of(delivered(adopted)));
    }
    let catalog = app.catalog();
    let (model, route) = match find(&catalog, claim) {
        Ok(found) => found,
        Err(Some(ending)) => return Ran::Ended(unless_delivered(ending, adopted)),
        Err(None) => return not_called(adopted),
    };
    let inputs = match open_inputs(app, task).await {
        Ok(inputs) => inputs,
        Err(Some(ending)) => return Ran::Ended(unless_delivered(ending, adopted)),
        Err(None) => return not_called(adopted),
    };
    let began = Instant::now();
    let left = deadline.saturating_duration_since(began);
    let Some(permit) = may_call(claim, route, left) else {
        return not_called(adopted);
    };
    let limit = route.settings.timeout().min(left);
    let mut calls = calls(app, claim, route, &inputs, &adopted);
    let generating = calls.iter_mut();
    let results = join_all(generating.map(|call| call.generate(app, route, limit))).await;
    let took = began.elapsed();
    let mut attempt = Attempt {
        route: route.name.clone(),
        jobs: Vec::new(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        class: None,
    };
    // Images not stored by then are given up, so that the stored ones can still be settled.
    let until = deadline.checked_sub(SETTLE_TIME).unwrap_or(deadline);
    let kept = join_all(calls.into_iter().map(|call| call.sink.into_kept(until))).await;
    let (mut images, mut usage) = (adopted, Vec::new());
    let mut errors: Vec<BackendError> = results.into_iter().filter_map(Result::err).collect();
    for kept in kept {
        attempt.jobs.extend(kept.job);
        images.extend(kept.images);
        usage.extend(kept.usage);
        errors.extend(kept.not_stored.map(BackendError::Sink));
    }
    let error = retry::decisive(errors.into_iter()).filter(|_| images.is_empty());
    attempt.class = error.as_ref().map(BackendError::class);
    let calls = Called {
        began,
        took,
        left,
        class: attempt.class,
    };
    calls.record(app, route, permit);
    let context = RetryContext {
        model,
        requirements: requirements(&task.request),
        routing: &catalog.routing,
        attempts: u16::try_from(task.attempts).unwrap_or_default(),
        attempts_max: app.config.tasks.attempts_max,
        left: until.saturating_duration_since(Instant::now()),
    };
    match error {
        Some(error) => fail(&error, attempt, assignment, &context, usage),
        None => Ran::Ended(Ending {
            outcome: delivered(images),
            attempt: Some(attempt),
            usage,
        }),
    }
}

fn without_call(kind: FailureKind, message: &str) -> Ending {
    Ending::of(Outcome::Failed(failed(kind, message)))
}

/// Delivers the adopted images even if the rest cannot be generated.
fn unless_delivered(ending: Ending, adopted: Adopted) -> Ending {
    if adopted.is_empty() {
        return ending;
    }
    Ending::of(delivered(adopted))
}

/// A task of which no call may be made now. What an earlier attempt has stored is delivered.
fn not_called(adopted: Adopted) -> Ran {
    if adopted.is_empty() {
        Ran::NotBegun
    } else {
        Ran::Ended(Ending::of(delivered(adopted)))
    }
}

/// Opens the inputs. `None` as an error: they could not be stored at present.
async fn open_inputs(app: &App, task: &Task) -> Result<Inputs, Option<Ending>> {
    match timeout(task.left, inputs::open_all(app, task)).await {
        Ok(Ok(inputs)) => Ok(inputs),
        Ok(Err(InputError::NotStored)) => Err(None),
        Ok(Err(InputError::Unusable(failure))) => Err(Some(Ending::of(Outcome::Failed(failure)))),
        Err(_) => Err(Some(without_call(FailureKind::Deadline, PAST_DEADLINE))),
    }
}

/// Acquires the circuit's permit, if a call can end in time or resumes a job.
fn may_call(claim: &Claim, route: &Route, left: Duration) -> Option<Permit> {
    let is_resumed = !claim.assignment.jobs.is_empty();
    let ends_in_time = left >= route.pace.least() || is_resumed;
    if left.is_zero() || !ends_in_time {
        return None;
    }
    route.breaker.try_acquire(claim.task.account_id)
}

/// How the calls of an attempt went, taken together.
struct Called {
    began: Instant,
    took: Duration,
    /// Time until the task's deadline when the calls began.
    left: Duration,
    class: Option<Class>,
}

impl Called {
    /// Records the result and duration for the route. A failure caused by our deadline or by a
    /// stall of this process says nothing about the backend: then the permit is dropped unrecorded.
    fn record(&self, app: &App, route: &Route, permit: Permit) {
        match self.class {
            None => route.pace.delivered_in(self.took),
            Some(_) if self.took + SETTLE_TIME >= self.left => {
                return route.pace.cut_off_after(self.left);
            }
            Some(_) if app.stalls.since(self.began) => return,
            Some(_) => {}
        }
        permit.record(self.class);
    }
}

/// The failure message of a task that has no time left.
pub(super) const PAST_DEADLINE: &str = "the task ran past its deadline";

/// The assigned route. `None` as an error: a reload has removed it since the claim, so that the task needs another.
fn find<'a>(
    catalog: &'a Catalog,
    Claim { task, assignment }: &Claim,
) -> Result<(&'a Model, &'a Route), Option<Ending>> {
    let model = catalog.model(&task.request.model);
    if let Some(assigned) = &assignment.route {
        let model = model.ok_or(None)?;
        return Ok((model, model.route(assigned).ok_or(None)?));
    }
    let (kind, message) = match model {
        None => (FailureKind::Internal, "the model is no longer configured"),
        Some(_) => (
            FailureKind::Upstream,
            "no upstream of this model can be used at present",
        ),
    };
    tracing::warn!(
        model = task.request.model,
        "no route can be used for the task"
    );
    Err(Some(without_call(kind, message)))
}

fn fail(
    error: &BackendError,
    attempt: Attempt,
    before: &Assignment,
    context: &RetryContext<'_>,
    usage: Vec<Value>,
) -> Ran {
    if let Some(wait) = retry::wait(error, &attempt.route, before, context) {
        return Ran::Again { attempt, wait };
    }
    let failure = if context.left.is_zero() {
        failed(FailureKind::Deadline, PAST_DEADLINE)
    } else {
        retry::failure(error)
    };
    Ran::Ended(Ending {
        outcome: Outcome::Failed(failure),
        attempt: Some(attempt),
        usage,
    })
}

fn delivered(images: BTreeMap<u8, Image>) -> Outcome {
    if images.is_empty() {
        let message = "the upstream answered without an image";
        return Outcome::Failed(failed(FailureKind::Upstream, message));
    }
    Outcome::Completed(images.into_values().collect())
}

/// One call of a backend, for as many of a task's images as it generates at once.
struct Call<'a> {
    request: GenerateRequest,
    sink: StorageSink<'a>,
}

/// The calls still to be made: for the images that were not adopted, and, where a call resumes an
/// earlier worker's job, for all of that job's images.
fn calls<'a>(
    app: &'a App,
    Claim { task, assignment }: &'a Claim,
    route: &Route,
    inputs: &Inputs,
    adopted: &Adopted,
) -> Vec<Call<'a>> {
    let n_max = route.backend.capabilities().n_max.max(1);
    let seqs: Vec<u8> = (1..=task.request.n).collect();
    let call = |(index, seqs): (usize, &[u8])| {
        let job = assignment.jobs.get(index).cloned().flatten();
        let is_missing = |seq: &u8| !adopted.contains_key(seq);
        if !seqs.iter().any(is_missing) {
            return None;
        }
        let seqs: Vec<u8> = seqs
            .iter()
            .copied()
            .filter(|seq| job.is_some() || is_missing(seq))
            .collect();
        Some(Call {
            request: GenerateRequest {
                n: u8::try_from(seqs.len()).unwrap_or(n_max),
                job,
                ..generate_request(&task.request, route, inputs)
            },
            sink: StorageSink::new(app, task, index, seqs, route.settings.timeout()),
        })
    };
    seqs.chunks(usize::from(n_max))
        .enumerate()
        .filter_map(call)
        .collect()
}

fn generate_request(request: &Request, route: &Route, inputs: &Inputs) -> GenerateRequest {
    let settings = &route.settings;
    GenerateRequest {
        model: route.upstream_model.clone(),
        prompt: request.prompt.clone(),
        n: request.n,
        ratio: request.ratio,
        resolution: request.resolution,
        size: request.size,
        quality: settings.forward_quality.then_some(request.quality),
        references: inputs.references.clone(),
        mask: inputs.mask.clone(),
        options: request.options.clone(),
        extra: settings.extra.clone(),
        job: None,
    }
}

impl Call<'_> {
    #[tracing::instrument(name = "upstream_call", skip_all, fields(images = self.request.n))]
    async fn generate(
        &mut self,
        app: &App,
        route: &Route,
        limit: Duration,
    ) -> Result<(), BackendError> {
        let generate = route.backend.generate(&self.request, &mut self.sink);
        let result = app
            .stalls
            .timeout(limit, generate)
            .await
            .unwrap_or_else(|_| {
                self.give_up(app, route);
                Err(BackendError::OutcomeUnknown {
                    detail: format!("no complete answer within {} ms", limit.as_millis()),
                })
            });
        if let Err(error) = &result {
            tracing::warn!(
                class = ?error.class(),
                error = error as &dyn Error,
                "an upstream call failed"
            );
        }
        result
    }

    /// Cancels the upstream's job in the background, if there is one. Best effort.
    fn give_up(&self, app: &App, route: &Route) {
        let resumed = self.request.job.as_deref();
        let Some(job) = self.sink.job().or(resumed).map(str::to_owned) else {
            return;
        };
        let backend = route.backend.clone();
        let cancel = async move {
            match timeout(CANCEL_TIMEOUT, backend.cancel(&job)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        "could not cancel an upstream job"
                    );
                }
                Err(_) => tracing::warn!("could not cancel an upstream job in time"),
            }
        };
        app.shutdown.tracker.spawn(cancel.in_current_span());
    }
}
