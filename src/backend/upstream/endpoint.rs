//! The address of an upstream, and how we authenticate.

use std::time::Duration;

use reqwest::{
    Client, Method, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{BackendError, error};

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// An upstream's address and key. The key goes to no other host: redirects are not followed, and requests
/// go only to paths below the address or to URLs that a rule allows.
pub(in crate::backend) struct Endpoint {
    /// Follows no redirects and knows no key: only requests built here carry it.
    pub(in crate::backend) client: Client,
    base_url: Url,
    secret: SecretString,
    /// `None` if the upstream takes no key.
    header: Option<(HeaderName, HeaderValue)>,
}

/// How the key is sent.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) enum Scheme<'a> {
    /// In `Authorization`, after this word: `Bearer`, `Key`.
    Authorization(&'a str),
    /// In `Authorization`; the key is `user:password`.
    Basic,
    /// As the whole value of the header of this name.
    Header(&'a str),
}

/// Why settings cannot be used.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum InvalidSetting {
    /// `base_url` has another scheme.
    #[error("base_url must start with https:// or http://")]
    BaseUrl,
    /// The configured name is not a header name.
    #[error("the header for the key has an invalid name")]
    KeyHeader,
    /// The key cannot be sent in a header.
    #[error("api_key must not contain line breaks or other control characters")]
    ApiKey,
}

impl Endpoint {
    /// An empty `secret` means that no key is sent.
    pub(in crate::backend) fn open(
        client: Client,
        base_url: &Url,
        secret: &SecretString,
        scheme: Scheme<'_>,
    ) -> Result<Self, InvalidSetting> {
        if !matches!(base_url.scheme(), "https" | "http") {
            return Err(InvalidSetting::BaseUrl);
        }
        Ok(Self {
            client,
            base_url: base_url.clone(),
            header: header(secret.expose_secret(), scheme)?,
            secret: secret.clone(),
        })
    }

    /// A request with the key, to `path` below the address. The address's own query (`api-version=…`)
    /// is kept.
    pub(in crate::backend) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_to(method, self.below(path))
    }

    /// The URL of `path` below the address; its query follows the address's own.
    pub(in crate::backend) fn below(&self, path: &str) -> Url {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut url = self.base_url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        match (url.query().map(str::to_owned), query) {
            (_, "") => {}
            (None, query) => url.set_query(Some(query)),
            (Some(own), query) => url.set_query(Some(&format!("{own}&{query}"))),
        }
        url
    }

    /// A request with the key, to a URL that was verified to be the upstream's: the key must not go
    /// anywhere else.
    pub(in crate::backend) fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.header {
            Some((name, value)) => request.header(name, value.clone()),
            None => request,
        }
    }

    /// A GET with the key, of a path below the address.
    pub(in crate::backend) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// A POST with the key, to a path below the address.
    pub(in crate::backend) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// The answer at `path`, which shows whether the upstream is reachable and accepts the key.
    pub(in crate::backend) async fn check(&self, path: &str) -> Result<Response, BackendError> {
        let sent = self.get(path).timeout(CHECK_TIMEOUT).send().await;
        sent.map_err(error::not_reached)
    }

    /// The response if its status is a success, else its error.
    pub(in crate::backend) async fn good(
        &self,
        response: Response,
    ) -> Result<Response, BackendError> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(error::read(response, self.secret()).await)
    }

    /// The key, for masking it in messages. It must never be shown.
    pub(in crate::backend) fn secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

fn header(
    secret: &str,
    scheme: Scheme<'_>,
) -> Result<Option<(HeaderName, HeaderValue)>, InvalidSetting> {
    if secret.is_empty() {
        return Ok(None);
    }
    let (name, text) = match scheme {
        Scheme::Authorization(word) => (AUTHORIZATION, format!("{word} {secret}")),
        Scheme::Basic => {
            let encoded = base64_simd::STANDARD.encode_to_string(secret);
            (AUTHORIZATION, format!("Basic {encoded}"))
        }
        Scheme::Header(name) => {
            let name = HeaderName::try_from(name).or(Err(InvalidSetting::KeyHeader))?;
            (name, secret.to_owned())
        }
    };
    let mut value = HeaderValue::try_from(text).or(Err(InvalidSetting::ApiKey))?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}
