//! The only client that fetches URLs given by the gateway's clients. It connects only to addresses that the guard
//! permits, sends nothing that identifies the caller, and limits bytes and time whatever the server does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use hyper::{
    StatusCode,
    header::{CONTENT_ENCODING, LOCATION},
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use super::{
    allowance::FetchBudget,
    connection::{Answer, Connector},
    error::RequestFault,
    guard::{Guard, UrlError},
    resolve::GuardedResolver,
};
use crate::{config, tls};

/// Fetches references.
#[derive(Clone, Debug)]
pub struct Fetcher {
    connector: Arc<Connector>,
    guard: Guard,
    config: config::References,
    bytes_max: u64,
}

/// A body that is arriving. The stream fails rather than exceed the fetcher's limits. Its total time runs from the call
/// of [`Fetcher::fetch`].
pub struct Fetched {
    /// In bytes, if the server declares it.
    pub length: Option<u64>,
    /// The body. It fails on any error, limit or timeout.
    pub stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// Its text is for the client: the same for rejected, closed, silent and filtered servers.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// For whatever reason: the cause is only in the log.
    #[error("could not be fetched")]
    Failed(#[source] FetchFault),
    /// One reference exceeds its limit.
    #[error("must be at most {bytes_max} bytes")]
    TooLarge {
        /// The limit of one reference.
        bytes_max: u64,
    },
    /// The references of the task exceed their limit.
    #[error("exceeds the {bytes_max} bytes that all fetched ones may have together")]
    TooLargeTogether {
        /// The limit of all references of a task.
        bytes_max: u64,
    },
}

/// The actual cause. For the log only; contains no URL, because a URL can be a credential.
#[derive(Debug, thiserror::Error)]
pub enum FetchFault {
    /// The guard refuses the URL.
    #[error("its URL, or one that it redirects to, is refused")]
    Url(#[from] UrlError),
    /// The request was not answered.
    #[error("the request failed")]
    Request(#[from] RequestFault),
    /// `Location` is missing or is no URL.
    #[error("it redirects to an invalid URL")]
    Location,
    /// As many redirects as allowed were followed.
    #[error("it redirects more than {redirects_max} times")]
    Redirects {
        /// The limit.
        redirects_max: u32,
    },
    /// The server answered, but not with the reference.
    #[error("it returned status {0} instead of 200")]
    Status(StatusCode),
    /// The gateway requests it uncompressed.
    #[error("the body is compressed")]
    Encoding,
    /// The time of the reference, or of all references of the task, is up.
    #[error("it took longer than {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// The client could not be created.
#[derive(Debug, thiserror::Error)]
#[error(
    "the client for references could not be set up: are the system's CA certificates installed?"
)]
pub struct BuildError(#[source] rustls::Error);

/// For tests: one server that replaces the internet, the name server that resolves to it, and its trusted certificate.
/// All other addresses are treated as usual. No setting enables this.
#[derive(Clone, Debug)]
pub struct ExemptServer {
    /// The server that may be connected to.
    pub address: SocketAddr,
    /// The name server to use.
    pub name_server: SocketAddr,
    /// The certificate to trust.
    pub root: CertificateDer<'static>,
}

impl Fetcher {
    /// `bytes_max` is the limit of one body; `public_url` is the prefix of this gateway's own links.
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
        tls::install_crypto_provider();
        let tls = ClientConfig::builder().with_platform_verifier();
        let tls = tls.map_err(BuildError)?.with_no_client_auth();
        Ok(Self::build(config, bytes_max, resolver, tls))
    }

    /// For tests without internet access.
    pub fn with_exempt(
        config: &config::References,
        bytes_max: u64,
        public_url: &str,
        exempt: ExemptServer,
    ) -> Result<Self, BuildError> {
        let resolver = GuardedResolver {
            guard: Guard::new(config, public_url).with_exempt(exempt.address),
            name_server: Some(exempt.name_server),
            connect_timeout: config.connect_timeout(),
        };
        tls::install_crypto_provider();
        let mut roots = RootCertStore::empty();
        roots.add(exempt.root).map_err(BuildError)?;
        let tls = ClientConfig::builder().with_root_certificates(roots);
        let tls = tls.with_no_client_auth();
        Ok(Self::build(config, bytes_max, resolver, tls))
    }

    fn build(
        config: &config::References,
        bytes_max: u64,
        resolver: GuardedResolver,
        mut tls: ClientConfig,
    ) -> Self {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let guard = resolver.guard.clone();
        let connector = Connector {
            resolver,
            tls: Arc::new(tls),
            connect_timeout: config.connect_timeout(),
            idle_timeout: config.idle_timeout(),
            bytes_max,
        };
        Self {
            connector: Arc::new(connector),
            guard,
            config: config.clone(),
            bytes_max,
        }
    }

    /// Parses a client's URL and checks all that can be checked without the network.
    pub fn check_url(&self, url: &str) -> Result<Url, UrlError> {
        self.guard.check_url(url)
    }

    /// A new budget, to be shared by the references of one task.
    pub fn allowance(&self) -> Arc<FetchBudget> {
        Arc::new(FetchBudget::new(&self.config))
    }

    /// Requests a URL, follows redirects, and returns the body as it arrives. The caller must check that it is an
    /// image.
    pub async fn fetch(
        &self,
        url: &Url,
        allowance: &Arc<FetchBudget>,
    ) -> Result<Fetched, FetchError> {
        let begin = Instant::now();
        let timeout = self.config.fetch_timeout();
        let (deadline, timeout) =
            (begin + timeout, timeout).min((allowance.deadline, allowance.timeout));
        let opened = timeout_at(deadline, self.open(url.clone())).await;
        let answer = match opened.unwrap_or(Err(FetchFault::Timeout(timeout))) {
            Ok(answer) => answer,
            Err(fault) => {
                sleep_until(next_step(begin, self.config.failure_delay_step())).await;
                return Err(FetchError::Failed(fault));
            }
        };
        let length = answer.content_length();
        let body = Body {
            answer,
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

    async fn open(&self, mut url: Url) -> Result<Answer, FetchFault> {
        let redirects_max = self.config.redirects_max;
        for _ in 0..=redirects_max {
            // Every hop is checked, resolved and connected again.
            self.guard.check_parsed_url(&url)?;
            let answer = self.connector.get(&url).await?;
            if !is_redirect(answer.response.status()) {
                return accept(answer);
            }
            url = location(&answer, &url)?;
        }
        Err(FetchFault::Redirects { redirects_max })
    }
}

/// A body in progress and the rest of its limits. Nothing is decompressed, so a piece has as many bytes here as on the
/// wire.
struct Body {
    answer: Answer,
    deadline: Instant,
    timeout: Duration,
    bytes_max: u64,
    bytes_left: u64,
    allowance: Arc<FetchBudget>,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let piece = timeout_at(self.deadline, self.answer.piece())
            .await
            .map_err(|_elapsed| FetchFault::Timeout(self.timeout))
            .and_then(|piece| Ok(piece?))
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

/// When a failure is reported. A rejected address fails at once, a closed one soon, a silent one late. From outside,
/// all failures within one step look the same.
fn next_step(begin: Instant, step: Duration) -> Instant {
    let (elapsed, step) = (begin.elapsed().as_millis(), step.as_millis().max(1));
    let wait_ms = (elapsed / step + 1) * step;
    begin + Duration::from_millis(u64::try_from(wait_ms).unwrap_or(u64::MAX))
}

fn accept(answer: Answer) -> Result<Answer, FetchFault> {
    let response = &answer.response;
    if response.status() != StatusCode::OK {
        return Err(FetchFault::Status(response.status()));
    }
    let mut encodings = response.headers().get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(FetchFault::Encoding);
    }
    Ok(answer)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn location(answer: &Answer, url: &Url) -> Result<Url, FetchFault> {
    let location = answer.response.headers().get(LOCATION);
    location
        .and_then(|location| std::str::from_utf8(location.as_bytes()).ok())
        .and_then(|location| url.join(location).ok())
        .ok_or(FetchFault::Location)
}
