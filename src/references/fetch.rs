//! The only client that follows a URL given by a client of the gateway. It speaks to nobody but the
//! addresses that the guard lets through, sends nothing that identifies the caller, and is bounded in
//! bytes and in time whatever the other side does.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use reqwest::{
    Certificate, Client, ClientBuilder, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION},
    redirect,
};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use super::{
    allowance::Allowance,
    guard::{AddressRefused, Guard, UrlError},
    resolve::GuardedResolver,
};
use crate::{config, tls};

/// Fetches references. Clones share one client.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    guard: Guard,
    config: config::References,
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
    #[error("exceeds the {bytes_max} bytes that all fetched ones may have together")]
    TooLargeTogether { bytes_max: u64 },
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

/// What takes the internet's place in a trial: one server, the name server that leads to it, and the
/// certificate that it is trusted by. Every other address is treated as always. No setting leads here.
#[derive(Clone, Debug)]
pub struct StandIn {
    pub address: SocketAddr,
    pub name_server: SocketAddr,
    pub root: Certificate,
}

impl Fetcher {
    /// `bytes_max` is the most that one body may have, `public_url` what this gateway's own links begin
    /// with.
    pub fn new(
        config: &config::References,
        bytes_max: u64,
        public_url: &str,
    ) -> Result<Self, BuildError> {
        let resolver = GuardedResolver {
            guard: Guard::new(config, public_url),
            name_server: None,
            connect_timeout: config.connect_timeout(),
        };
        Self::build(config, bytes_max, resolver, Client::builder())
    }

    /// For trials without an internet.
    pub fn with_stand_in(
        config: &config::References,
        bytes_max: u64,
        public_url: &str,
        stand_in: StandIn,
    ) -> Result<Self, BuildError> {
        let resolver = GuardedResolver {
            guard: Guard::new(config, public_url).with_stand_in(stand_in.address),
            name_server: Some(stand_in.name_server),
            connect_timeout: config.connect_timeout(),
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
        tls::install_crypto_provider();
        let guard = resolver.guard.clone();
        let client = client
            .dns_resolver(resolver)
            // A proxy would resolve names itself, and connect wherever they lead.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .https_only(true)
            // Every hop is resolved and checked anew, and no stranger's connection is kept.
            .pool_max_idle_per_host(0)
            .connect_timeout(config.connect_timeout())
            .read_timeout(config.idle_timeout())
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
            config: config.clone(),
            bytes_max,
        })
    }

    /// Reads a client's URL and checks what can be seen of it without the network.
    pub fn check_url(&self, url: &str) -> Result<Url, UrlError> {
        self.guard.check_url(url)
    }

    /// For the references of one task, which share it.
    pub fn allowance(&self) -> Arc<Allowance> {
        Arc::new(Allowance::new(&self.config))
    }

    /// Asks for a URL, follows its redirects, and gives back the body as it comes in. Whether that is
    /// an image is for the caller to see.
    pub async fn fetch(
        &self,
        url: &Url,
        allowance: &Arc<Allowance>,
    ) -> Result<Fetched, FetchError> {
        let begin = Instant::now();
        let timeout = self.config.fetch_timeout();
        let (deadline, timeout) =
            (begin + timeout, timeout).min((allowance.deadline, allowance.timeout));
        let opened = timeout_at(deadline, self.open(url.clone())).await;
        let response = match opened.unwrap_or(Err(FetchFault::Timeout(timeout))) {
            Ok(response) => response,
            Err(fault) => {
                sleep_until(next_step(begin, self.config.failure_step())).await;
                return Err(FetchError::Failed(fault));
            }
        };
        let length = response.content_length();
        let body = Body {
            response,
            deadline,
            timeout,
            bytes_max: self.bytes_max,
            bytes_left: self.bytes_max,
            allowance: Arc::clone(allowance),
        };
        if length.is_some_and(|length| length > self.bytes_max) {
            return Err(body.too_large());
        }
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
        let redirects_max = self.config.redirects_max;
        for _ in 0..=redirects_max {
            let response = self.get(&url).await?;
            if !is_redirect(response.status()) {
                return accept(response);
            }
            url = location(&response, &url)?;
        }
        Err(FetchFault::Redirects { redirects_max })
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

/// A body under way, and what is left of its limits. Its pieces come without the framing of chunks, and
/// nothing is ever decompressed, so a piece has as many bytes here as it had on the wire.
struct Body {
    response: Response,
    deadline: Instant,
    timeout: Duration,
    bytes_max: u64,
    bytes_left: u64,
    allowance: Arc<Allowance>,
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
            .ok_or_else(|| self.too_large())?;
        if !self.allowance.take(bytes) {
            let bytes_max = self.allowance.bytes_max;
            return Err(FetchError::TooLargeTogether { bytes_max });
        }
        Ok(piece)
    }

    fn too_large(&self) -> FetchError {
        FetchError::TooLarge {
            bytes_max: self.bytes_max,
        }
    }
}

/// When a failure is told. A refused address fails at once, a closed one soon, a silent one late: from
/// outside, all that fail within a step look the same.
fn next_step(begin: Instant, step: Duration) -> Instant {
    let (elapsed, step) = (begin.elapsed().as_millis(), step.as_millis().max(1));
    let wait_ms = (elapsed / step + 1) * step;
    begin + Duration::from_millis(u64::try_from(wait_ms).unwrap_or(u64::MAX))
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
