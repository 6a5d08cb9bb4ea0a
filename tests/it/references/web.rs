//! The internet of these tests: a TLS server on loopback with an answer of every kind.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use easel::{
    config,
    references::{ExemptServer, FetchError, FetchFault, Fetched, Fetcher},
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use url::Url;

use super::dns::{Known, NameServer, known};
use crate::harness::{
    images::png,
    loopback::{Loopback, Serving},
};

/// The fetcher's limit for one reference, in bytes.
pub(super) const BYTES_MAX: u64 = 100_000;

/// A TLS server, and a fetcher that takes it for the internet: `private.test` is 10.0.0.1, `unknown.test` doesn't
/// exist, `stalled.test` is never answered, every other name is the server.
pub(super) struct Web {
    pub(super) address: SocketAddr,
    /// The certificate that the fetcher trusts.
    pub(super) root: rcgen::Certificate,
    pub(super) name_server: NameServer,
    pub(super) fetcher: Fetcher,
    seen: Arc<Seen>,
    _serving: Serving,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    heads: Mutex<Vec<String>>,
    /// Requests for `/slow-png`: in flight now, and the maximum at one time.
    slow: AtomicUsize,
    slow_max: AtomicUsize,
    /// Bytes of interim answers.
    flooded: AtomicUsize,
}

impl Web {
    pub(super) async fn start() -> Self {
        Self::start_with(|name, _| match name {
            "private.test" => known(&["10.0.0.1"]),
            "unknown.test" => Known::NoSuchName,
            "stalled.test" => Known::Silence,
            _ => known(&["127.0.0.1"]),
        })
        .await
    }

    pub(super) async fn start_with(
        known: impl Fn(&str, usize) -> Known + Send + Sync + 'static,
    ) -> Self {
        Self::start_until(2100, known).await
    }

    /// `year` is the one in which its certificate expires.
    pub(super) async fn start_until(
        year: i32,
        known: impl Fn(&str, usize) -> Known + Send + Sync + 'static,
    ) -> Self {
        let (acceptor, root) = certify(year);
        let loopback = Loopback::bind().await;
        let address = loopback.address();
        let name_server = NameServer::start(known).await;
        let seen = Arc::new(Seen::default());
        let all = Arc::clone(&seen);
        let serving = loopback.accept(move |socket| {
            all.connections.fetch_add(1, Ordering::SeqCst);
            connection(socket, acceptor.clone(), Arc::clone(&all))
        });
        let settings = references("");
        let fetcher = fetcher(&settings, BYTES_MAX, address, name_server.address, &root);
        Self {
            address,
            root,
            name_server,
            fetcher,
            seen,
            _serving: serving,
        }
    }

    pub(super) fn fetcher(&self, config: &config::References, address: SocketAddr) -> Fetcher {
        self.fetcher_of(config, address, BYTES_MAX)
    }

    pub(super) fn fetcher_of(
        &self,
        config: &config::References,
        address: SocketAddr,
        bytes_max: u64,
    ) -> Fetcher {
        let name_server = self.name_server.address;
        fetcher(config, bytes_max, address, name_server, &self.root)
    }

    /// Fetches a URL; one without a port gets that of the server.
    pub(super) async fn fetch(&self, url: &str) -> Result<Fetched, FetchError> {
        let mut url = Url::parse(url).unwrap();
        if url.port().is_none() {
            url.set_port(Some(self.address.port())).unwrap();
        }
        self.fetcher.fetch(&url, &self.fetcher.allowance()).await
    }

    /// The fault of a fetch that must fail.
    pub(super) async fn fault(&self, url: &str) -> FetchFault {
        match self.fetch(url).await {
            Err(FetchError::Failed(fault)) => fault,
            Err(other) => panic!("{url}: {other:?}"),
            Ok(_) => panic!("{url} was fetched"),
        }
    }

    /// How many connections were accepted.
    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// The maximum of concurrent requests for `/slow-png`.
    pub(super) fn slow_max(&self) -> usize {
        self.seen.slow_max.load(Ordering::SeqCst)
    }

    /// How many bytes of interim answers were sent.
    pub(super) fn flooded(&self) -> usize {
        self.seen.flooded.load(Ordering::SeqCst)
    }

    /// The heads of all requests, in order.
    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }
}

/// The default settings, but failures are reported at once; `changes` override them.
pub(super) fn references(changes: &str) -> config::References {
    let mut settings: toml::Table = include_str!("../../../config/easel.toml").parse().unwrap();
    let mut references = settings.remove("references").unwrap();
    for changes in ["failure_delay_step_ms = 1", changes] {
        let changes: toml::Table = changes.parse().unwrap();
        references.as_table_mut().unwrap().extend(changes);
    }
    references.try_into().unwrap()
}

/// The gateway itself is `https://own.test`, at the exempt server's port.
fn fetcher(
    config: &config::References,
    bytes_max: u64,
    address: SocketAddr,
    name_server: SocketAddr,
    root: &rcgen::Certificate,
) -> Fetcher {
    let exempt = ExemptServer {
        address,
        name_server,
        root: root.der().clone(),
    };
    let public_url = format!("https://own.test:{}", address.port());
    Fetcher::with_exempt(config, bytes_max, &public_url, exempt).unwrap()
}

fn certify(year: i32) -> (TlsAcceptor, rcgen::Certificate) {
    let names = ["public.test", "private.test", "own.test", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).unwrap();
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let der = CertificateDer::from(certificate.der().to_vec());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, seen: Arc<Seen>) -> io::Result<()> {
    let port = socket.local_addr()?.port();
    let mut stream = acceptor.accept(socket).await?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap().to_owned();
        seen.heads.lock().unwrap().push(head);
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if path == "/slow-png" {
            let now = seen.slow.fetch_add(1, Ordering::SeqCst) + 1;
            seen.slow_max.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            seen.slow.fetch_sub(1, Ordering::SeqCst);
        }
        if path == "/continues" {
            return flood(&mut stream, &seen.flooded).await;
        }
        answer(path, query, port, &mut stream).await?;
        // These invite the client to reuse the connection.
        if path != "/image" && !path.starts_with("/redirect/") {
            return stream.shutdown().await;
        }
    }
}

async fn answer(
    path: &str,
    query: &str,
    port: u16,
    stream: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let text = match path {
        "/image" => format!("{ok}content-length: 5\r\n\r\nimage"),
        "/html" => format!("{ok}content-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"),
        "/chunked" => {
            let body = query
                .parse()
                .map_or("image".to_owned(), |length| "x".repeat(length));
            format!(
                "{ok}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
        }
        "/sized" => {
            let body = "x".repeat(query.parse().unwrap());
            format!("{ok}content-length: {query}\r\n\r\n{body}")
        }
        "/lies" => format!("{ok}content-length: {query}\r\n\r\nimage"),
        "/more-than-announced" => format!("{ok}content-length: 3\r\n\r\nimage"),
        "/less-than-announced" => format!("{ok}content-length: 9\r\n\r\nimage"),
        "/cut-chunk" => format!("{ok}transfer-encoding: chunked\r\n\r\n9\r\nimage"),
        "/encoded" => format!("{ok}content-encoding: {query}\r\ncontent-length: 1\r\n\r\nx"),
        "/status" => format!("HTTP/1.1 {query} Some\r\ncontent-length: 0\r\n\r\n"),
        "/redirect/1" => redirect("301 Moved", &format!("https://public.test:{port}/image")),
        "/redirect/2" => redirect(
            "307 Moved",
            &format!("https://public.test:{port}/redirect/1"),
        ),
        "/redirect/3" => redirect(
            "308 Moved",
            &format!("https://public.test:{port}/redirect/2"),
        ),
        "/redirect/4" => redirect(
            "303 Moved",
            &format!("https://public.test:{port}/redirect/3"),
        ),
        "/relative" => redirect("302 Found", "../image"),
        "/loop" => redirect("302 Found", "/loop"),
        "/to" => redirect("302 Found", query),
        "/nowhere" => "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/slow-redirects" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redirect("302 Found", "/slow-redirects")
        }
        "/png" | "/slow-png" => {
            let length = png().len();
            let head = format!("{ok}content-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&png()).await?;
            return stream.flush().await;
        }
        _ => return never_end(path, stream).await,
    };
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// Sends interim answers without end, and never the final one.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), flooded: &AtomicUsize) -> io::Result<()> {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
    loop {
        stream.write_all(interim.as_bytes()).await?;
        stream.flush().await?;
        flooded.fetch_add(interim.len(), Ordering::SeqCst);
    }
}

fn redirect(status: &str, location: &str) -> String {
    format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

async fn never_end(path: &str, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let many = "x".repeat(0x4000);
    let chunk = format!("4000\r\n{many}\r\n");
    let (head, piece, pause_ms) = match path {
        "/endless" => ("transfer-encoding: chunked\r\n\r\n", chunk.as_str(), 0),
        "/endless-until-close" => ("\r\n", many.as_str(), 0),
        "/drip" => ("content-length: 9999\r\n\r\n", "x", 50),
        "/head-drip" => ("x-long: ", "x", 50),
        "/stops" => {
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npic";
            stream.write_all(begun).await?;
            stream.flush().await?;
            return std::future::pending().await;
        }
        "/silent" => return std::future::pending().await,
        _ => panic!("no such path: {path}"),
    };
    stream
        .write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes())
        .await?;
    loop {
        stream.write_all(piece.as_bytes()).await?;
        stream.flush().await?;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}
