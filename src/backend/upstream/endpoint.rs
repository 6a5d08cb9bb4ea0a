//! Where an upstream is, and how it knows us.

use reqwest::{
    Client, Method, RequestBuilder,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// An upstream's address and key. The key goes to no other host: redirects are not followed, and
/// requests are made from paths below the address.
pub(in crate::backend) struct Endpoint {
    pub(in crate::backend) client: Client,
    base_url: Url,
    secret: SecretString,
    /// `None`: an upstream without keys.
    header: Option<(HeaderName, HeaderValue)>,
}

/// How the key is shown.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) enum Scheme {
    /// In `Authorization`, after this word: `Bearer`, `Key`.
    Authorization(&'static str),
    /// In `Authorization`; the key is `user:password`.
    Basic,
    /// Alone in a header of this name.
    Header(&'static str),
}

/// Why settings can't be used.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum InvalidSetting {
    #[error("base_url must start with https:// or http://")]
    BaseUrl,
    #[error("api_key may hold no line ends or other control characters")]
    ApiKey,
}

impl Endpoint {
    /// An empty `secret` is none.
    pub(in crate::backend) fn open(
        client: Client,
        base_url: &Url,
        secret: &SecretString,
        scheme: Scheme,
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
        let mut url = self.base_url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
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

    pub(in crate::backend) fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// What may never be shown.
    pub(in crate::backend) fn secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

fn header(
    secret: &str,
    scheme: Scheme,
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
        Scheme::Header(name) => (HeaderName::from_static(name), secret.to_owned()),
    };
    let mut value = HeaderValue::try_from(text).or(Err(InvalidSetting::ApiKey))?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}
