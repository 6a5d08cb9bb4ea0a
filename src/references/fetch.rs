//! The only client that follows a URL given by a client of the gateway. It speaks to nobody but the
//! addresses that the guard lets through, sends nothing that identifies the caller, and is bounded in
//! bytes and in time whatever the other side does.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use reqwest::{
    Certificate, Client, ClientBuilder, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION},
    redirect,
};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    guard::{AddressRefused, Guard, UrlError},
    resolve::{GuardedResolver, Lookup, system_lookup},
};
use crate::config;

/// For the name, the connection and its encryption together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the first byte of an answer, and between any two of it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A failure is told after a random delay up to this, so that its time tells nothing about its cause.
const FAILURE_DELAY_MS_MAX: u64 = 100;

/// Fetches references. Clones share one client.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    guard: Guard,
    redirects_max: u32,
    timeout: Duration,
    bytes_max: u64,
}

/// A body that has begun to come in. The stream fails rather than exceed the fetcher's limits; its
/// total time runs from the call of [`Fetcher::fetch`].
pub struct Fetched {
    /// In bytes, where the server tells it.
    pub length: Option<u64>,
    pub stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// Its text is for the client: the same for what was refused, closed, silent or filtered.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("could not be fetched")]
    Failed(#[source] FetchFault),
    #[error("must be at most {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
}

/// What really happened. For the log only; holds no URL, since a URL can be a credential.
#[derive(Debug, thiserror::Error)]
pub enum FetchFault {
    #[error("its URL, or one that it redirects to, is refused")]
    Url(#[from] UrlError),
    #[error("its host is refused")]
    Address(#[from] AddressRefused),
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the connection's address is unknown")]
    NoPeer,
    #[error("it redirects to no readable URL")]
    Location,
    #[error("it redirects more than {redirects_max} times")]
    Redirects { redirects_max: u32 },
    #[error("it was answered with {0} instead of 200")]
    Status(StatusCode),
    #[error("its content came compressed")]
    Encoding,
    #[error("it took longer than {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "the client for references could not be set up: are the system's CA certificates installed?"
)]
pub struct BuildError(#[source] reqwest::Error);

/// What takes the internet's place in a trial: one server, the names that lead to it, and the
/// certificate that it is trusted by. Every other address is treated as always.
pub struct StandIn {
    pub address: SocketAddr,
    pub lookup: Lookup,
    pub root: Certificate,
}

impl Fetcher {
    /// `bytes_max` is the most that one body may have.
    pub fn new(config: &config::References, bytes_max: u64) -> Result<Self, BuildError> {
        let resolver = GuardedResolver {
            guard: Guard::new(config),
            lookup: system_lookup(),
        };
        Self::build(config, bytes_max, resolver, Client::builder())
    }

    /// For trials without an internet.
    pub fn with_stand_in(
        config: &config::References,
        bytes_max: u64,
        stand_in: StandIn,
    ) -> Result<Self, BuildError> {
        let guard = match Guard::new(config) {
            Guard::Everything => Guard::Everything,
            _ => Guard::PublicAnd(stand_in.address),
        };
        let resolver = GuardedResolver {
            guard,
            lookup: stand_in.lookup,
        };
        let client = Client::builder().tls_certs_only([stand_in.root]);
        Self::build(config, bytes_max, resolver, client)
    }

    fn build(
        config: &config::References,
        bytes_max: u64,
        resolver: GuardedResolver,
        client: ClientBuilder,
    ) -> Result<Self, BuildError> {
        // Whoever was first has installed the same one.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let guard = resolver.guard;
        let client = client
            .dns_resolver(resolver)
            // A proxy would resolve names itself, and connect wherever they lead.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .https_only(true)
            // Every hop is resolved and checked anew, and no stranger's connection is kept.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([
                (ACCEPT, HeaderValue::from_static("image/*")),
                (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            ]))
            .build()
            .map_err(BuildError)?;
        Ok(Self {
            client,
            guard,
            redirects_max: config.redirects_max,
            timeout: config.fetch_timeout(),
            bytes_max,
        })
    }

    /// Asks for a URL, follows its redirects, and gives back the body as it comes in. Whether that is
    /// an image is for the caller to see.
    pub async fn fetch(&self, url: &Url) -> Result<Fetched, FetchError> {
        let deadline = Instant::now() + self.timeout;
        let opened = timeout_at(deadline, self.open(url.clone())).await;
        let response = match opened.unwrap_or(Err(FetchFault::Timeout(self.timeout))) {
            Ok(response) => response,
            Err(fault) => {
                let delay_ms = rand::random_range(0..=FAILURE_DELAY_MS_MAX);
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                return Err(FetchError::Failed(fault));
            }
        };
        let length = response.content_length();
        if length.is_some_and(|length| length > self.bytes_max) {
            return Err(FetchError::TooLarge {
                bytes_max: self.bytes_max,
            });
        }
        let body = Body {
            response,
            deadline,
            timeout: self.timeout,
            bytes_max: self.bytes_max,
            bytes_left: self.bytes_max,
        };
        let stream = stream::try_unfold(body, |mut body| async {
            let piece = body.next().await?;
            Ok(piece.map(|piece| (piece, body)))
        });
        Ok(Fetched {
            length,
            stream: stream.boxed(),
        })
    }

    async fn open(&self, mut url: Url) -> Result<Response, FetchFault> {
        for _ in 0..=self.redirects_max {
            let response = self.get(&url).await?;
            if !is_redirect(response.status()) {
                return accept(response);
            }
            url = location(&response, &url)?;
        }
        Err(FetchFault::Redirects {
            redirects_max: self.redirects_max,
        })
    }

    /// One hop. The resolver is never asked about a literal address, so the URL is checked here; and the
    /// address that was connected to is checked again, should the two ever part.
    async fn get(&self, url: &Url) -> Result<Response, FetchFault> {
        self.guard.check_parsed_url(url)?;
        if let Some(address) = literal(url) {
            self.guard.check_address(address)?;
        }
        let response = self.client.get(url.clone()).send().await;
        let response = response.map_err(request_fault)?;
        let peer = response.remote_addr().ok_or(FetchFault::NoPeer)?;
        self.guard.check_address(peer.ip())?;
        Ok(response)
    }
}

/// A body under way, and what is left of its limits.
struct Body {
    response: Response,
    deadline: Instant,
    timeout: Duration,
    bytes_max: u64,
    bytes_left: u64,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let piece = timeout_at(self.deadline, self.response.chunk())
            .await
            .map_err(|_elapsed| FetchFault::Timeout(self.timeout))
            .and_then(|piece| piece.map_err(request_fault))
            .map_err(FetchError::Failed)?;
        let bytes = piece.as_ref().map_or(0, Bytes::len) as u64;
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes)
            .ok_or(FetchError::TooLarge {
                bytes_max: self.bytes_max,
            })?;
        Ok(piece)
    }
}

fn accept(response: Response) -> Result<Response, FetchFault> {
    if response.status() != StatusCode::OK {
        return Err(FetchFault::Status(response.status()));
    }
    let mut encodings = response.headers().get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(FetchFault::Encoding);
    }
    Ok(response)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn location(response: &Response, url: &Url) -> Result<Url, FetchFault> {
    let location = response.headers().get(LOCATION);
    location
        .and_then(|location| std::str::from_utf8(location.as_bytes()).ok())
        .and_then(|location| url.join(location).ok())
        .ok_or(FetchFault::Location)
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        url::Host::Ipv4(address) => Some(address.into()),
        url::Host::Ipv6(address) => Some(address.into()),
        url::Host::Domain(_) => None,
    }
}

fn request_fault(error: reqwest::Error) -> FetchFault {
    FetchFault::Request(error.without_url())
}
