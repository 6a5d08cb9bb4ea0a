//! Fetches images that an upstream returns as URLs: at once, because such links expire within minutes,
//! without the key, and only from hosts and ports that the settings name.

use reqwest::{Client, Response, StatusCode, header::LOCATION};
use url::Url;

use super::{BackendError, delivery::Delivery, error};

/// Permanent links redirect to the stored bytes; every step must go to an allowed host.
const REDIRECTS_MAX: usize = 3;
const HTTPS_PORT: u16 = 443;

/// Which URLs from an upstream may be called.
pub(in crate::backend) struct DownloadRule {
    base_url: Url,
    /// Host names, each with its port.
    hosts: Vec<(String, u16)>,
}

impl DownloadRule {
    /// `hosts` are names, or `*.` and a name for all subdomains; each may have a port.
    pub(in crate::backend) fn new(base_url: &Url, hosts: &[String]) -> Self {
        Self {
            base_url: base_url.clone(),
            hosts: hosts.iter().map(|host| authority(host)).collect(),
        }
    }

    /// The image's URL if it may be fetched.
    pub(in crate::backend) fn allow(&self, url: &str) -> Result<Url, BackendError> {
        self.check(url).map_err(|fault| BackendError::NoImage {
            detail: format!("an image's url {fault}; see download_hosts"),
        })
    }

    /// The URL if it may be called. The error says what is wrong with it.
    pub(in crate::backend) fn check(&self, url: &str) -> Result<Url, String> {
        let Ok(url) = Url::parse(url) else {
            return Err("is not an absolute URL".to_owned());
        };
        let host = url.host_str().unwrap_or_default();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("on {host} carries a user name"));
        }
        // The upstream itself is allowed, even without encryption.
        if url.origin() == self.base_url.origin() {
            return Ok(url);
        }
        if url.scheme() != "https" {
            return Err(format!("on {host} is not https"));
        }
        let port = url.port().unwrap_or(HTTPS_PORT);
        if !self.names(host, port) {
            let host = host_and_port(host, port);
            return Err(format!(
                "is on {host}, which is not among the allowed hosts"
            ));
        }
        Ok(url)
    }

    fn names(&self, host: &str, port: u16) -> bool {
        let is_own = self.base_url.host_str() == Some(host) && port == HTTPS_PORT;
        let mut others = self.hosts.iter().filter(|(_, allowed)| *allowed == port);
        is_own
            || others.any(|(allowed, _)| match allowed.strip_prefix("*.") {
                None => allowed == host,
                Some(parent) => host
                    .strip_suffix(parent)
                    .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            })
    }
}

/// Parses a host from the settings. Without a port it means 443 only: other ports may be other services.
fn authority(host: &str) -> (String, u16) {
    let host = host.to_lowercase();
    let with_port = host.rsplit_once(':');
    with_port
        .and_then(|(name, port)| Some((name.to_owned(), port.parse().ok()?)))
        .unwrap_or((host, HTTPS_PORT))
}

fn host_and_port(host: &str, port: u16) -> String {
    match port {
        HTTPS_PORT => host.to_owned(),
        port => format!("{host}:{port}"),
    }
}

/// Passes on the image at `url`, if the rule allows it.
pub(in crate::backend) async fn fetch(
    client: &Client,
    rule: &DownloadRule,
    url: &str,
    delivery: &mut Delivery<'_>,
) -> Result<(), BackendError> {
    let mut url = rule.allow(url)?;
    for _ in 0..=REDIRECTS_MAX {
        let sent = client.get(url.clone()).send().await;
        let response = sent.map_err(error::interrupted)?;
        if !response.status().is_redirection() {
            return receive(response, delivery).await;
        }
        url = rule.allow(&location(&url, &response)?)?;
    }
    Err(BackendError::NoImage {
        detail: format!("an image's url redirects more than {REDIRECTS_MAX} times"),
    })
}

/// Passes on the image in the response.
pub(in crate::backend) async fn receive(
    mut response: Response,
    delivery: &mut Delivery<'_>,
) -> Result<(), BackendError> {
    match response.status() {
        StatusCode::OK => {}
        status if status.is_server_error() => {
            return Err(BackendError::Failed {
                detail: format!("an image's url answered {status}"),
            });
        }
        status => {
            return Err(BackendError::NoImage {
                detail: format!("an image's url answered {status}"),
            });
        }
    }
    while let Some(piece) = response.chunk().await.map_err(error::interrupted)? {
        delivery.write(piece).await?;
    }
    delivery.finish().await
}

/// The target of a redirect.
fn location(from: &Url, response: &Response) -> Result<String, BackendError> {
    let named = response.headers().get(LOCATION);
    let named = named.and_then(|to| to.to_str().ok());
    let to = named.and_then(|to| from.join(to).ok());
    to.map(String::from).ok_or_else(|| BackendError::NoImage {
        detail: "an image's url redirects without a valid location".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(base_url: &str, url: &str) -> bool {
        let hosts = ["cdn.example", "*.Images.example", "odd.example:9443"].map(str::to_owned);
        let rule = DownloadRule::new(&Url::parse(base_url).unwrap(), &hosts);
        rule.allow(url).is_ok()
    }

    #[test]
    fn only_named_hosts_over_https() {
        let base = "https://api.example/v1";
        for url in [
            "https://api.example/1.png",
            "https://cdn.example/1.png",
            "https://CDN.example/1.png",
            "https://a.images.example/1.png",
            "https://a.b.images.example/1.png",
        ] {
            assert!(allows(base, url), "{url}");
        }
        for url in [
            "http://api.example/1.png",
            "https://other.example/1.png",
            "https://images.example/1.png",
            "https://.images.example/1.png",
            "https://evilimages.example/1.png",
            "https://cdn.example.evil/1.png",
            "https://cdn.example@evil.example/1.png",
            "https://user@cdn.example/1.png",
            "https://127.0.0.1/1.png",
            "file:///etc/passwd",
            "/1.png",
            "",
        ] {
            assert!(!allows(base, url), "{url}");
        }
    }

    #[test]
    fn other_ports_only_if_configured() {
        let base = "https://api.example:8443/v1";
        assert!(allows(base, "https://api.example:8443/1.png"));
        assert!(allows(base, "https://api.example/1.png"));
        assert!(allows(base, "https://cdn.example:443/1.png"));
        assert!(allows(base, "https://odd.example:9443/1.png"));
        for url in [
            "https://api.example:9443/1.png",
            "https://cdn.example:8443/1.png",
            "https://odd.example/1.png",
            "https://a.images.example:22/1.png",
            "http://api.example:8443/1.png",
        ] {
            assert!(!allows(base, url), "{url}");
        }
        assert!(!allows(
            "https://api.example/v1",
            "https://api.example:8443/1.png"
        ));
    }

    #[test]
    fn http_only_to_an_upstream_that_is_itself_http() {
        let base = "http://127.0.0.1:1234/v1";
        assert!(allows(base, "http://127.0.0.1:1234/1.png"));
        assert!(!allows(base, "http://127.0.0.1:22/1.png"));
        assert!(!allows(base, "http://cdn.example/1.png"));
    }
}
