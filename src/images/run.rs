//! One attempt to generate a claimed task: its references are made ready, the backend of its route generates, the
//! images are stored. No connection to the database is held meanwhile.

use std::{collections::BTreeMap, error::Error, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    adopt::{self, Adopted},
    inputs::{self, Inputs},
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
    tasks::{Assignment, Attempt, FailureKind, Image, Outcome, Request, Task, storable},
};

/// For telling an upstream that nobody waits any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of an attempt.
#[derive(Debug)]
pub enum Ran {
    Ended(Ending),
    /// It failed, and is to be tried again after a wait.
    Again {
        attempt: Attempt,
        wait: Duration,
    },
    /// No call was made: its time or its route's circuit does not allow one now.
    NotBegun,
}

#[derive(Debug)]
pub struct Ending {
    pub outcome: Outcome,
    /// `None`: no upstream was asked.
    pub attempt: Option<Attempt>,
    /// What the upstream says that it has taken.
    pub usage: Vec<Value>,
}

impl Ending {
    fn unasked(kind: FailureKind, message: &str) -> Self {
        Self::of(Outcome::Failed(failed(kind, message)))
    }

    /// As the database takes it: much of it is an upstream's.
    #[must_use]
    pub fn storable(mut self) -> Self {
        self.usage.iter_mut().for_each(storable::value);
        Self {
            outcome: self.outcome.storable(),
            attempt: self.attempt.map(Attempt::storable),
            usage: self.usage,
        }
    }

    pub fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            attempt: None,
            usage: Vec::new(),
        }
    }

    /// What is there is delivered though the rest cannot be had.
    fn unless_delivered(self, adopted: Adopted) -> Self {
        if adopted.is_empty() {
            return self;
        }
        Self::of(delivered(adopted))
    }
}

/// What a task asks of who generates it.
pub fn requirements(request: &Request) -> Requirements {
    Requirements {
        references: request.references.len(),
        mask: request.mask.is_some(),
    }
}

/// Has a task generated as it was assigned, within its deadline. What was delivered before something failed
/// counts, and then nothing is tried again.
pub async fn run(app: &App, task: &Task, assignment: &Assignment) -> Ran {
    let deadline = Instant::now() + task.left;
    let adopted = adopt::adopt(app, task).await;
    if adopted.len() == usize::from(task.request.n) {
        return Ran::Ended(Ending::of(delivered(adopted)));
    }
    let catalog = app.catalog();
    let (model, route) = match find(&catalog, task, assignment) {
        Ok(found) => found,
        Err(ending) => return Ran::Ended(ending.unless_delivered(adopted)),
    };
    let inputs = match open_inputs(app, task).await {
        Ok(inputs) => inputs,
        Err(ending) => return Ran::Ended(ending.unless_delivered(adopted)),
    };
    let began = Instant::now();
    let left = deadline.saturating_duration_since(began);
    let Some(permit) = may_call(task, route, assignment, left) else {
        return if adopted.is_empty() {
            Ran::NotBegun
        } else {
            Ran::Ended(Ending::of(delivered(adopted)))
        };
    };
    let limit = route.settings.timeout().min(left);
    let mut calls = calls(app, task, route, assignment, &inputs, &adopted);
    let result = join_all(
        calls
            .iter_mut()
            .map(|call| call.generate(app, route, limit)),
    )
    .await;
    let took = began.elapsed();
    let mut attempt = Attempt {
        route: route.name.clone(),
        jobs: Vec::new(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        class: None,
    };
    // What is not stored by then is given up, so that what is can still be settled.
    let until = deadline.checked_sub(SETTLE_TIME).unwrap_or(deadline);
    let kept = join_all(calls.into_iter().map(|call| call.sink.into_kept(until))).await;
    let (mut images, mut usage) = (adopted, Vec::new());
    let mut errors: Vec<BackendError> = result.into_iter().filter_map(Result::err).collect();
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

async fn open_inputs(app: &App, task: &Task) -> Result<Inputs, Ending> {
    match timeout(task.left, inputs::open_all(app, task)).await {
        Ok(Ok(inputs)) => Ok(inputs),
        Ok(Err(failure)) => Err(Ending::of(Outcome::Failed(failure))),
        Err(_) => Err(Ending::unasked(FailureKind::Deadline, PAST_DEADLINE)),
    }
}

/// Whether a call can end in time, or goes on with what was begun, and the circuit of its route lets it through.
fn may_call(task: &Task, route: &Route, assignment: &Assignment, left: Duration) -> Option<Permit> {
    let is_resumed = !assignment.jobs.is_empty();
    let ends_in_time = left >= route.pace.least() || is_resumed;
    if left.is_zero() || !ends_in_time {
        return None;
    }
    route.breaker.try_acquire(task.account_id)
}

/// How the calls of an attempt went, all in all.
struct Called {
    began: Instant,
    took: Duration,
    /// Until the task's deadline, when they began.
    left: Duration,
    class: Option<Class>,
}

impl Called {
    /// Tells the route's circuit, and how long it took; but nothing of a backend that our deadline or a stall
    /// of this process left no chance: then the permit is given back.
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

pub(super) const PAST_DEADLINE: &str = "the task ran past its deadline";

fn find<'a>(
    catalog: &'a Catalog,
    task: &Task,
    assignment: &Assignment,
) -> Result<(&'a Model, &'a Route), Ending> {
    let gone = || Ending::unasked(FailureKind::Internal, "the model is no longer configured");
    let model = catalog.model(&task.request.model).ok_or_else(gone)?;
    let route = assignment.route.as_deref();
    let route = route.and_then(|route| model.route(route)).ok_or_else(|| {
        tracing::warn!(task.id = %task.id, model = model.name, "no route can be used");
        let message = "no upstream of this model can be used at present";
        Ending::unasked(FailureKind::Upstream, message)
    })?;
    Ok((model, route))
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

/// One call of a backend: as many of a task's images as it generates at once.
struct Call<'a> {
    task: &'a Task,
    request: GenerateRequest,
    sink: StorageSink<'a>,
}

/// The calls that are still to be made: for what was not adopted, and where an earlier worker's job goes on for
/// all that it gives.
fn calls<'a>(
    app: &'a App,
    task: &'a Task,
    route: &Route,
    assignment: &Assignment,
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
            task,
            request: GenerateRequest {
                n: u8::try_from(seqs.len()).unwrap_or(n_max),
                job,
                ..generate_request(&task.request, route, inputs)
            },
            sink: StorageSink::new(app, task, index, seqs),
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
                    detail: format!("no whole answer within {} ms", limit.as_millis()),
                })
            });
        if let Err(error) = &result {
            tracing::warn!(task.id = %self.task.id, route = route.name, class = ?error.class(), error = error as &dyn Error, "an upstream did not generate");
        }
        result
    }

    /// Tells the upstream, as well as that can be done; nobody waits for it.
    fn give_up(&self, app: &App, route: &Route) {
        let resumed = self.request.job.as_deref();
        let Some(job) = self.sink.job().or(resumed).map(str::to_owned) else {
            return;
        };
        let backend = route.backend.clone();
        app.shutdown.tracker.spawn(async move {
            match timeout(CANCEL_TIMEOUT, backend.cancel(&job)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn Error, "a job could not be cancelled");
                }
                Err(_) => tracing::warn!("a job could not be cancelled in time"),
            }
        });
    }
}
