//! The names of a job, and the URLs of its requests.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use super::template::{Piece, Placeholder, Text};
use crate::{
    backend::upstream::{download::DownloadRule, endpoint::Endpoint},
    ids,
};

const NAME_BYTES_MAX: usize = 2048;

/// The characters to escape in one step of a path.
const STEP: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same for model names, which may be several steps: `owner/name`.
const STEPS: &AsciiSet = &STEP.remove(b'/');

/// The names of one job. Its text form, with which another worker resumes the job, is the upstream's name,
/// or our key and, once it is known, the upstream's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct JobHandle {
    /// Our idempotency key, by which the upstream recognises a repeated submit.
    pub(super) repeat_key: Option<String>,
    /// The upstream's name: an id or a URL.
    pub(super) name: Option<String>,
}

impl JobHandle {
    /// The handle of a job not submitted yet: with a fresh key if the upstream recognises repeats.
    pub(super) fn new(repeatable: bool) -> Self {
        Self {
            repeat_key: repeatable.then(ids::random_hex),
            name: None,
        }
    }

    /// Parses the text form. `repeatable` must be as it was for [`Self::new`].
    pub(super) fn parse(text: &str, repeatable: bool) -> Self {
        let (key, name) = match (repeatable, text.split_once(' ')) {
            (false, _) => (None, Some(text)),
            (true, None) => (Some(text), None),
            (true, Some((key, name))) => (Some(key), Some(name)),
        };
        Self {
            repeat_key: key.map(str::to_owned),
            name: name.map(str::to_owned),
        }
    }

    /// The text form.
    pub(super) fn text(&self) -> String {
        let parts = [self.repeat_key.as_deref(), self.name.as_deref()];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        parts.join(" ")
    }
}

/// The URL of a submit.
pub(super) fn submit_url(endpoint: &Endpoint, path: &Text, model: &str) -> Url {
    let model = utf8_percent_encode(model, STEPS).to_string();
    endpoint.below(&filled(path, &model))
}

/// The URL of a request about the job `name`. The error says why there is none. A URL from the upstream is
/// used only if `rule` allows it, because the key is sent to it.
pub(super) fn url(
    endpoint: &Endpoint,
    rule: &DownloadRule,
    path: &Text,
    name: &str,
) -> Result<Url, String> {
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && !matches!(name, "." | "..");
    if !sound {
        return Err("the job's name is invalid".to_owned());
    }
    if !path.is_named_url() {
        let step = utf8_percent_encode(name, STEP).to_string();
        return Ok(endpoint.below(&filled(path, &step)));
    }
    let mut url = rule
        .check(name)
        .map_err(|fault| format!("the job's url {fault}"))?;
    let behind: String = filled(path, "");
    if !behind.is_empty() {
        let whole = format!("{}{behind}", url.path().trim_end_matches('/'));
        let (path, query) = whole.split_once('?').unwrap_or((&whole, ""));
        url.set_path(path);
        url.set_query(Some(query).filter(|query| !query.is_empty()));
    }
    Ok(url)
}

fn filled(path: &Text, value: &str) -> String {
    let pieces = path.0.iter().map(|piece| match piece {
        Piece::Plain(plain) => plain.as_str(),
        Piece::Value(Placeholder::Model | Placeholder::Named) => value,
        Piece::Value(_) => "",
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::backend::upstream::endpoint::Scheme;

    fn address(path: &str, name: &str) -> Result<String, String> {
        crate::tls::install_crypto_provider();
        let base = Url::parse("https://api.example/v1/").unwrap();
        let key = SecretString::from("k");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let scheme = Scheme::Authorization("Bearer");
        let endpoint = Endpoint::open(client, &base, &key, scheme).unwrap();
        let rule = DownloadRule::new(&base, &["*.regions.example".to_owned()]);
        let path = Text::parse(path).unwrap();
        url(&endpoint, &rule, &path, name).map(String::from)
    }

    #[test]
    fn an_id_is_one_step_of_a_path() {
        let got = |name| address("tasks/{job}?lang=en", name);
        let whole = |step: &str| Ok(format!("https://api.example/v1/tasks/{step}?lang=en"));
        assert_eq!(got("task_01-x.y~z"), whole("task_01-x.y~z"));
        assert_eq!(got("../a?b#c"), whole("..%2Fa%3Fb%23c"));
        assert_eq!(
            got("https://evil.example/"),
            whole("https%3A%2F%2Fevil.example%2F")
        );
        for bad in ["", ".", "..", "a b", "a\nb", "é", &"x".repeat(3000)] {
            assert!(got(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_jobs_url_must_satisfy_the_rule() {
        let got = |name| address("{job}", name);
        let good = "https://eu.regions.example/v1/get?id=1";
        assert_eq!(got(good).unwrap(), good);
        let status = address("{job}/status?logs=0", "https://api.example/a/requests/1");
        assert_eq!(
            status.unwrap(),
            "https://api.example/a/requests/1/status?logs=0"
        );
        for bad in [
            "https://evil.example/v1/get?id=1",
            "https://regions.example/",
            "https://regions.example.evil.example/",
            "http://eu.regions.example/",
            "https://api.example@evil.example/",
            "https://user@api.example/",
            "//api.example/",
            "get?id=1",
        ] {
            let told = got(bad).unwrap_err();
            assert!(told.starts_with("the job's url"), "{bad}: {told}");
        }
    }

    #[test]
    fn job_handles_round_trip_through_text() {
        for (text, repeatable) in [
            ("a", false),
            ("https://h/?a", false),
            ("k", true),
            ("k a", true),
        ] {
            assert_eq!(JobHandle::parse(text, repeatable).text(), text);
        }
        assert_eq!(JobHandle::new(false).text(), "");
        let new = JobHandle::new(true);
        assert_eq!(JobHandle::parse(&new.text(), true), new);
        assert_eq!(new.text().len(), 32);
    }
}
