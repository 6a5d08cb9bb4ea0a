//! Polls a job until it ends, for as long as the caller allows. Failures that say nothing about the job
//! are retried after a wait.

use std::{ops::RangeInclusive, time::Duration};

use reqwest::{Method, header::ACCEPT};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{
    ANSWER_TIMEOUT, AsyncJob, RESULT_TRIES_MAX, WAIT_MAX,
    failure::{PollError, refused},
    handle,
    protocol::Poll,
    template::Text,
};
use crate::{
    backend::{
        BackendError,
        upstream::{
            answer::receive,
            delivery::Delivery,
            error::{self, UpstreamError},
        },
    },
    clock::jittered,
};

/// The random factors of a wait.
const JITTER: RangeInclusive<f64> = 0.9..=1.1;
/// A wait is doubled at most this many times.
const DOUBLINGS_MAX: u32 = 8;

/// The waits between polls: constant ones, and longer ones after failures.
pub(super) struct Waits {
    interval: Duration,
    failures: u32,
}

impl Waits {
    /// Waits of `interval` each, until a poll fails.
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            failures: 0,
        }
    }

    /// Waits after a poll that was answered.
    pub(super) async fn answered(&mut self) {
        self.failures = 0;
        sleep(jittered(self.interval, JITTER)).await;
    }

    /// Waits after a poll that failed temporarily.
    pub(super) async fn failed(&mut self, error: &BackendError) {
        let doubled = self.interval * (1 << self.failures.min(DOUBLINGS_MAX));
        self.failures = self.failures.saturating_add(1);
        let asked = match error {
            BackendError::RateLimited { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = doubled.min(WAIT_MAX.max(self.interval)).max(asked);
        sleep(jittered(wait, JITTER)).await;
    }
}

impl AsyncJob {
    /// Returns the answer with the result once the job is done. Images inside the answer have been passed on
    /// by then.
    pub(super) async fn outcome(
        &self,
        name: &str,
        waits: &mut Waits,
        delivery: &mut Delivery<'_>,
    ) -> Result<Value, BackendError> {
        let mut tries = 1;
        loop {
            let error = match self.poll_once(name, delivery).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {
                    waits.answered().await;
                    continue;
                }
                Err(PollError::Final(error)) => return Err(error),
                Err(PollError::Passing(error)) => error,
                // A failed job's result may be answered with such an error too.
                Err(PollError::Withheld(error)) if tries == RESULT_TRIES_MAX => return Err(error),
                Err(PollError::Withheld(error)) => {
                    tries += 1;
                    error
                }
            };
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "an upstream's job could not be polled"
            );
            waits.failed(&error).await;
        }
    }

    /// Polls once. Returns the job's result, or `None` while it is running.
    async fn poll_once(
        &self,
        name: &str,
        delivery: &mut Delivery<'_>,
    ) -> Result<Option<Value>, PollError> {
        let Poll {
            path,
            state,
            done,
            failed,
            refused: refusing,
            error,
        } = &self.protocol.poll;
        let answer = self.get(path, name, delivery).await?;
        let said = state.texts(&answer).first().copied().unwrap_or_default();
        let is = |states: &[String]| states.iter().any(|state| state == said);
        let reported = || {
            let reported = error.find(&answer);
            reported
                .map(|error| UpstreamError::of_value(error, self.endpoint.secret()))
                .filter(|error| !error.is_empty())
        };
        if is(done) {
            if let Some(error) = reported() {
                return Err(PollError::Final(self.protocol.errors.of_ended(error)));
            }
            return match &self.protocol.result.path {
                Some(path) => match self.get(path, name, delivery).await {
                    Err(PollError::Passing(error)) => Err(PollError::Withheld(error)),
                    got => got.map(Some),
                },
                None => Ok(Some(answer)),
            };
        }
        if is(refusing) {
            let message = reported().map_or_else(String::new, |error| error.message);
            return Err(PollError::Final(refused(message)));
        }
        if is(failed) {
            let error = reported().unwrap_or_default();
            return Err(PollError::Final(self.protocol.errors.of_ended(error)));
        }
        if said.is_empty() {
            return Err(self.stateless(&answer));
        }
        Ok(None)
    }

    /// Classifies a successful answer without a state: some contain an error.
    fn stateless(&self, answer: &Value) -> PollError {
        let error = UpstreamError::of_value(answer, self.endpoint.secret());
        if let Some(error) = self.protocol.errors.of_named(&error, None) {
            return PollError::Final(error);
        }
        PollError::Passing(BackendError::Failed {
            detail: format!("the answer contains no state: {}", error.message),
        })
    }

    /// The answer at one of the job's paths.
    async fn get(
        &self,
        path: &Text,
        name: &str,
        delivery: &mut Delivery<'_>,
    ) -> Result<Value, PollError> {
        let url = handle::url(&self.endpoint, &self.key_hosts, path, name)
            .map_err(|detail| PollError::Final(BackendError::Failed { detail }))?;
        let request = self.endpoint.request_to(Method::GET, url);
        let request = request.header(ACCEPT, "application/json");
        let answered = async {
            let response = request.send().await.map_err(error::transport);
            let response = response.map_err(PollError::Passing)?;
            if !response.status().is_success() {
                let answer = error::read_error(response, self.endpoint.secret()).await;
                return Err(PollError::of_status(&self.protocol.errors, answer));
            }
            let answer = receive(response, &self.images, delivery).await;
            answer.map_err(|error| PollError::of_silence(error, delivery.has_begun()))
        };
        let in_time = timeout(ANSWER_TIMEOUT, answered).await;
        in_time.unwrap_or_else(|_| {
            let detail = format!("no answer within {ANSWER_TIMEOUT:?}");
            Err(PollError::of_silence(
                BackendError::OutcomeUnknown { detail },
                delivery.has_begun(),
            ))
        })
    }
}
