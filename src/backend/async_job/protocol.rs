//! The description of an upstream that accepts a request, names a job and is polled for it: its paths, its
//! body, and the locations of values in its answers. See docs/backends.md.

use std::collections::BTreeMap;

use reqwest::{
    Method,
    header::{HeaderName, HeaderValue},
};
use serde::Deserialize;
use url::Url;

use super::template::{Piece, Placeholder, Template, Text};
use crate::backend::json_path::JsonPaths;

/// A description, as written in TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Protocol {
    /// The upstream's address, unless the operator sets another.
    pub(super) base_url: Option<Url>,
    /// How to authenticate.
    #[serde(default)]
    pub(super) auth: Auth,
    /// Hosts, besides that of the base URL, to which the key may be sent.
    #[serde(default)]
    pub(super) key_hosts: Vec<String>,
    /// Hosts from which images are fetched, besides that of the base URL and the operator's.
    #[serde(default)]
    pub(super) download_hosts: Vec<String>,
    /// The most images that one job may request.
    #[serde(default = "one")]
    pub(super) n_max: u8,
    /// A path for GET that answers without generating anything.
    #[serde(default)]
    pub(super) check: String,
    /// `None` if no references are accepted.
    pub(super) references: Option<References>,
    /// How to submit a job.
    pub(super) submit: Submit,
    /// Replaces `submit` for requests with references.
    pub(super) edit: Option<Submit>,
    /// How to poll a job.
    pub(super) poll: Poll,
    /// How to read the result.
    pub(super) result: Outcome,
    /// How to cancel a job; `None`: the upstream cannot.
    pub(super) cancel: Option<Call>,
    /// How to classify errors.
    #[serde(default)]
    pub(super) errors: ErrorNames,
}

/// How the key is sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Auth {
    /// In `Authorization`, after this word.
    Scheme(String),
    /// As the whole value of this header.
    Header(String),
    /// Not at all.
    None,
}

/// How references are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct References {
    /// How each is written in the body.
    #[serde(rename = "as")]
    pub(super) way: Way,
    /// The most that one job may have.
    pub(super) count_max: usize,
    /// Larger ones are sent as links to this gateway, whatever `as` says.
    pub(super) link_above_bytes: Option<u64>,
    /// The upload to make first, if the way is `upload`.
    pub(super) upload: Option<Upload>,
}

/// How an image is written in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// Padded base64 of the standard alphabet, alone.
    Base64,
    /// With a prefix such as `data:image/png;base64,`.
    DataUrl,
    /// A short-lived link to this gateway, which the upstream must be able to reach.
    Link,
    /// The URL from the answer to an upload.
    Upload,
}

/// A form with one file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    /// Below the base URL.
    pub(super) path: Text,
    /// The name of the field that holds the file.
    pub(super) field: String,
    /// The location of the image's URL in the answer.
    pub(super) url: JsonPaths,
}

/// A request that submits a job.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submit {
    /// Below the base URL; may hold `{model}`.
    pub(super) path: Text,
    /// Headers to send with it, besides that of the key.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    /// The JSON body.
    pub(super) body: Template,
    /// The location of the job's name in the answer: an id, or a URL.
    pub(super) job: JsonPaths,
    /// The idempotency header by which the upstream recognises a repeated request, if it has one.
    pub(super) repeat_header: Option<String>,
}

/// How to poll a job, and how to read its state.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Poll {
    /// Below the base URL, containing `{job}`; or the job's own URL if it begins with `{job}`.
    pub(super) path: Text,
    /// The location of the job's state. A state in none of the lists means that the job is running.
    pub(super) state: JsonPaths,
    /// The states of a job that has succeeded.
    pub(super) done: Vec<String>,
    /// The states of a job that has failed.
    pub(super) failed: Vec<String>,
    /// The states of a job that the upstream's safety system has refused.
    #[serde(default)]
    pub(super) refused: Vec<String>,
    /// The location of the error in the answer of a job that has ended.
    #[serde(default)]
    pub(super) error: JsonPaths,
}

/// How to read the result of a job that is done.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outcome {
    /// The path of the result, if it is not in the answer that reports the end.
    pub(super) path: Option<Text>,
    /// Images as URLs: texts, or lists of texts.
    #[serde(default)]
    pub(super) urls: JsonPaths,
    /// Images as base64.
    #[serde(default)]
    pub(super) base64: JsonPaths,
    /// The usage to record: names, and the locations of their values.
    #[serde(default)]
    pub(super) usage: BTreeMap<String, JsonPaths>,
}

/// A request without a body.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    method: Verb,
    /// Below the base URL, containing `{job}`.
    pub(super) path: Text,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    Delete,
    Get,
    Post,
    Put,
}

/// The upstream's names for errors: each is a code, a type, or a part of a message.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ErrorNames {
    /// Refusals by the safety system.
    pub(super) refused: Vec<String>,
    /// Requests that the upstream does not accept.
    pub(super) invalid: Vec<String>,
    /// An invalid key, or a quota that is used up.
    pub(super) credentials: Vec<String>,
    /// Too many requests, or too much load.
    pub(super) rate_limited: Vec<String>,
}

impl Protocol {
    /// Parses and validates a description. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let protocol: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        protocol.check()?;
        Ok(protocol)
    }

    /// The submit for a request with or without references.
    pub(super) fn submit(&self, with_references: bool) -> &Submit {
        let edit = self.edit.as_ref().filter(|_| with_references);
        edit.unwrap_or(&self.submit)
    }

    /// Whether requests with references have a mask in their body.
    pub(super) fn takes_mask(&self) -> bool {
        let body = &self.submit(true).body;
        body.placeholders().contains(&&Placeholder::Mask)
    }

    /// Whether the body has a placeholder for the client's parameter of this name.
    pub(super) fn reads_option(&self, name: &str) -> bool {
        let bodies = [self.submit(false), self.submit(true)].map(|submit| &submit.body);
        let mut placeholders = bodies.into_iter().flat_map(Template::placeholders);
        placeholders.any(|placeholder| match placeholder {
            Placeholder::Seed => name == "seed",
            Placeholder::Option(option) => option == name,
            _ => false,
        })
    }

    fn check(&self) -> Result<(), String> {
        let is = |sound: bool, fault: &str| if sound { Ok(()) } else { Err(fault.to_owned()) };
        is((1..=10).contains(&self.n_max), "n_max must be from 1 to 10")?;
        is(!self.poll.done.is_empty(), "poll.done must name a state")?;
        if let Some(references) = &self.references {
            let count = references.count_max;
            is(
                (1..=16).contains(&count),
                "references.count_max must be from 1 to 16",
            )?;
            is(
                (references.way == Way::Upload) == references.upload.is_some(),
                "references.upload must be set if as = \"upload\", and only then",
            )?;
        }
        for submit in [Some(&self.submit), self.edit.as_ref()]
            .into_iter()
            .flatten()
        {
            submit.check()?;
        }
        // A job is cancelled by its handle alone, which must therefore read the same for both.
        let is_repeatable = |submit: &Submit| submit.repeat_header.is_some();
        let edit = self.edit.as_ref().map(is_repeatable);
        is(
            edit.is_none_or(|edit| edit == is_repeatable(&self.submit)),
            "submit and edit must both have a repeat_header, or neither",
        )?;
        let cancel = self.cancel.as_ref();
        let paths = [
            Some(&self.poll.path),
            self.result.path.as_ref(),
            cancel.map(|c| &c.path),
        ];
        for path in paths.into_iter().flatten() {
            let named = path.placeholders().all(|p| *p == Placeholder::Named);
            let mut after = path.0.iter().skip(1);
            let whole = !path.is_named_url() || after.all(|piece| matches!(piece, Piece::Plain(_)));
            is(
                named && whole,
                "poll.path, result.path and cancel.path may contain {job} only",
            )?;
        }
        Ok(())
    }
}

impl Submit {
    fn check(&self) -> Result<(), String> {
        let mut in_path = self.path.placeholders();
        if !in_path.all(|placeholder| *placeholder == Placeholder::Model) {
            return Err("submit.path may contain {model} only".to_owned());
        }
        if self.body.placeholders().contains(&&Placeholder::Named) {
            return Err("submit.body must not contain {job}".to_owned());
        }
        let named = self.headers.keys().chain(&self.repeat_header);
        for name in named {
            let sound = HeaderName::try_from(name);
            sound.map_err(|error| format!("{name:?} is not a header name: {error}"))?;
        }
        for (name, value) in &self.headers {
            let sound = HeaderValue::try_from(value);
            sound.map_err(|error| format!("{name} cannot be {value:?}: {error}"))?;
        }
        Ok(())
    }
}

impl Call {
    /// The verb as an HTTP method.
    pub(super) fn method(&self) -> Method {
        match self.method {
            Verb::Delete => Method::DELETE,
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
        }
    }
}

impl Text {
    /// Whether the path starts with the job's own URL.
    pub(super) fn is_named_url(&self) -> bool {
        self.0.first() == Some(&Piece::Value(Placeholder::Named))
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self::Scheme("Bearer".to_owned())
    }
}

fn one() -> u8 {
    1
}
