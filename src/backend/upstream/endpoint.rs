//! Where an upstream is, and how it knows us.

use reqwest::{
    Client, Method, RequestBuilder,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// An upstream's address and key. The key goes to no other host: redirects are not followed, and
/// requests are made from paths below the address, or to URLs held to a rule.
pub(in crate::backend) struct Endpoint {
    pub(in crate::backend) client: Client,
    base_url: Url,
    secret: SecretString,
    /// `None`: an upstream without keys.
    header: Option<(HeaderName, HeaderValue)>,
}

/// How the key is shown.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) enum Scheme<'a> {
    /// In `Authorization`, after this word: `Bearer`, `Key`.
    Authorization(&'a str),
    /// In `Authorization`; the key is `user:password`.
    Basic,
    /// Alone in a header of this name.
    Header(&'a str),
}

/// Why settings can't be used.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum InvalidSetting {
    #[error("base_url must start with https:// or http://")]
    BaseUrl,
    #[error("the header for the key has no name of a header")]
    KeyHeader,
    #[error("api_key may hold no line ends or other control characters")]
    ApiKey,
}

impl Endpoint {
    /// An empty `secret` is none.
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

    /// A request with the key, to `path` below the address; a query of the address's own
    /// (`api-version=…`) stays.
    pub(in crate::backend) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_to(method, self.below(path))
    }

    /// What `path` means below the address; its query goes behind the address's own.
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

    /// A request with the key, to an address that was found to be the upstream's: nowhere else may the
    /// key go.
    pub(in crate::backend) fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.header {
            Some((name, value)) => request.header(name, value.clone()),
            None => request,
        }
    }

    pub(in crate::backend) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(in crate::backend) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// What may never be shown.
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
