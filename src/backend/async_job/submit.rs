//! Submits a request: sends its inputs in the way the upstream accepts, then its body, and reads the name
//! of the job.

use std::io;

use reqwest::{Method, RequestBuilder, header::ACCEPT, multipart::Form};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    AsyncJob, SUBMIT_TIMEOUT,
    handle::{self, JobHandle},
    protocol::{References, Upload, Way},
    template::Values,
};
use crate::backend::{
    BackendError, GenerateRequest, ImageSink, Input,
    upstream::{
        answer,
        error::UpstreamError,
        extra::deep_merge,
        inputs::{self, Encoding, JsonBody, ReadFault},
    },
};

impl AsyncJob {
    /// Submits the request and records the names of the job. Returns the upstream's name.
    pub(super) async fn submit(
        &self,
        request: &GenerateRequest,
        handle: &mut JobHandle,
        images: &mut dyn ImageSink,
    ) -> Result<String, BackendError> {
        let submit = self.protocol.submit(!request.references.is_empty());
        let fault = ReadFault::default();
        let mut body = JsonBody::new(&fault);
        let (references, mask) = self.inputs(request, &mut body).await?;
        let mut value = submit.body.fill(&Values {
            request,
            size: self.native.fit(request.size),
            references,
            mask,
        });
        deep_merge(&mut value, &request.extra);
        let url = handle::submit_url(&self.endpoint, &submit.path, &request.model);
        let mut builder = self.endpoint.request_to(Method::POST, url);
        builder = builder.header(ACCEPT, "application/json");
        for (name, value) in &submit.headers {
            builder = builder.header(name, value);
        }
        if let (Some(header), Some(key)) = (&submit.repeat_header, &handle.repeat_key) {
            // Recorded before the upstream gets the request: a worker that resumes the task may only repeat it.
            images.accepted(&handle.text()).await?;
            builder = builder.header(header, key);
        }
        let answer = self.send_submit(body.on(builder, &value), &fault).await?;
        let Some(name) = named(submit.job.find(&answer)) else {
            return Err(self.without_name(&answer));
        };
        // Fails here rather than at every poll; the upstream may be generating by now.
        let poll = &self.protocol.poll.path;
        handle::url(&self.endpoint, &self.key_hosts, poll, &name)
            .map_err(|detail| BackendError::OutcomeUnknown { detail })?;
        handle.name = Some(name.clone());
        images.accepted(&handle.text()).await?;
        Ok(name)
    }

    async fn send_submit(
        &self,
        builder: RequestBuilder,
        fault: &ReadFault,
    ) -> Result<Value, BackendError> {
        // After a successful status the upstream has accepted the request, whatever happens to the body.
        let outcome_unknown = |detail: String| BackendError::OutcomeUnknown { detail };
        let answered = async {
            let response = inputs::send(builder, fault).await?;
            if !response.status().is_success() {
                return Err(self.failure(response).await);
            }
            answer::small(response).await.map_err(outcome_unknown)
        };
        let in_time = timeout(SUBMIT_TIMEOUT, answered).await;
        in_time.unwrap_or_else(|_| {
            Err(outcome_unknown(format!(
                "no answer within {SUBMIT_TIMEOUT:?}"
            )))
        })
    }

    /// Classifies a successful answer without a job's name.
    fn without_name(&self, answer: &Value) -> BackendError {
        let error = self.protocol.poll.error.find(answer).unwrap_or(answer);
        for value in [error, answer] {
            let error = UpstreamError::of_value(value, self.endpoint.secret());
            if !error.message.is_empty() {
                return self.protocol.errors.of_ended(error);
            }
        }
        BackendError::OutcomeUnknown {
            detail: "the answer names no job".to_owned(),
        }
    }

    /// The values in the body for the references and the mask.
    async fn inputs(
        &self,
        request: &GenerateRequest,
        body: &mut JsonBody<'_>,
    ) -> Result<(Vec<Value>, Option<Value>), BackendError> {
        let Some(way) = &self.protocol.references else {
            return Ok((Vec::new(), None));
        };
        let mut references = Vec::with_capacity(request.references.len());
        for input in &request.references {
            references.push(self.input(way, input, body).await?);
        }
        let mask = match &request.mask {
            Some(mask) => Some(self.input(way, mask, body).await?),
            None => None,
        };
        Ok((references, mask))
    }

    async fn input(
        &self,
        references: &References,
        input: &Input,
        body: &mut JsonBody<'_>,
    ) -> Result<Value, BackendError> {
        let above = references.link_above_bytes;
        if references.way == Way::Link || above.is_some_and(|bytes| input.length > bytes) {
            let none = || io::Error::other("an image has no link");
            let link = input.link.as_ref().ok_or_else(none);
            let link = link.map_err(BackendError::Input)?().await;
            return Ok(Value::String(link.map_err(BackendError::Input)?));
        }
        match (references.way, &references.upload) {
            (Way::Base64, _) => Ok(body.input(input, Encoding::Base64)),
            (Way::Upload, Some(upload)) => self.upload(upload, input).await,
            _ => Ok(body.input(input, Encoding::DataUrl)),
        }
    }

    /// Uploads an input. Nothing has been requested yet, so an upload without an answer buys nothing.
    async fn upload(&self, upload: &Upload, input: &Input) -> Result<Value, BackendError> {
        let fault = ReadFault::default();
        let part = inputs::file(input, "image", &fault)?;
        let form = Form::new().part(upload.field.clone(), part);
        let url = handle::submit_url(&self.endpoint, &upload.path, "");
        let builder = self.endpoint.request_to(Method::POST, url).multipart(form);
        let sent = timeout(SUBMIT_TIMEOUT, inputs::send(builder, &fault)).await;
        let not_there = |detail: String| BackendError::Unreachable { detail };
        let response = match sent {
            Ok(Err(BackendError::OutcomeUnknown { detail })) => return Err(not_there(detail)),
            Ok(sent) => sent?,
            Err(_) => return Err(not_there(format!("no answer within {SUBMIT_TIMEOUT:?}"))),
        };
        if !response.status().is_success() {
            return Err(self.failure(response).await);
        }
        let answer = answer::small(response).await.map_err(not_there)?;
        let url = upload.url.find(&answer).and_then(Value::as_str);
        let url = url.ok_or_else(|| not_there("the upload's answer has no URL".to_owned()))?;
        Ok(Value::String(url.to_owned()))
    }
}

/// Reads the job's name; an id may be a number.
fn named(found: Option<&Value>) -> Option<String> {
    match found? {
        Value::String(name) if !name.is_empty() => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
