//! The internet of these tests: a TLS server on loopback with an answer of every kind.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use easel::{
    config,
    references::{FetchError, FetchFault, Fetched, Fetcher, Lookup, StandIn},
};
use futures_util::FutureExt;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use url::Url;

pub(super) const BYTES_MAX: u64 = 100_000;

/// A TLS server and a fetcher to which it is the internet: `private.test` is 10.0.0.1, `unknown.test`
/// doesn't exist, every other name is the server.
pub(super) struct Web {
    pub(super) address: SocketAddr,
    pub(super) root: reqwest::Certificate,
    lookup: Lookup,
    pub(super) fetcher: Fetcher,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    heads: Mutex<Vec<String>>,
}

impl Web {
    pub(super) async fn start() -> Self {
        Self::start_with(|name| match name {
            "private.test" => Ok(vec![Ipv4Addr::new(10, 0, 0, 1).into()]),
            "unknown.test" => Err(io::Error::other("no such name")),
            _ => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
        })
        .await
    }

    pub(super) async fn start_with(
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self::start_until(2100, lookup).await
    }

    /// The year is the one in which its certificate expires.
    pub(super) async fn start_until(
        year: i32,
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        let (acceptor, root) = certify(year);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lookup: Lookup = Arc::new(move |name| std::future::ready(lookup(&name)).boxed());
        let seen = Arc::new(Seen::default());
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, acceptor, Arc::clone(&seen)));
        let stand_in = StandIn {
            address,
            lookup: Arc::clone(&lookup),
            root: root.clone(),
        };
        let fetcher = Fetcher::with_stand_in(&references(""), BYTES_MAX, stand_in).unwrap();
        Self {
            address,
            root,
            lookup,
            fetcher,
            seen,
            _serving: serving,
        }
    }

    pub(super) fn fetcher(&self, config: &config::References, address: SocketAddr) -> Fetcher {
        let stand_in = StandIn {
            address,
            lookup: Arc::clone(&self.lookup),
            root: self.root.clone(),
        };
        Fetcher::with_stand_in(config, BYTES_MAX, stand_in).unwrap()
    }

    /// A URL without a port gets that of the server.
    pub(super) async fn fetch(&self, url: &str) -> Result<Fetched, FetchError> {
        let mut url = Url::parse(url).unwrap();
        if url.port().is_none() {
            url.set_port(Some(self.address.port())).unwrap();
        }
        self.fetcher.fetch(&url).await
    }

    pub(super) async fn fault(&self, url: &str) -> FetchFault {
        match self.fetch(url).await {
            Err(FetchError::Failed(fault)) => fault,
            Err(other) => panic!("{url}: {other:?}"),
            Ok(_) => panic!("{url} was fetched"),
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }
}

/// The default settings, but for what is given.
pub(super) fn references(changes: &str) -> config::References {
    let mut settings: toml::Table = include_str!("../../../config/easel.toml").parse().unwrap();
    let changes: toml::Table = changes.parse().unwrap();
    let mut references = settings.remove("references").unwrap();
    references.as_table_mut().unwrap().extend(changes);
    references.try_into().unwrap()
}

fn certify(year: i32) -> (TlsAcceptor, reqwest::Certificate) {
    let names = ["public.test", "private.test", "127.0.0.1"].map(str::to_owned);
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
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    let root = reqwest::Certificate::from_der(&der).unwrap();
    (TlsAcceptor::from(Arc::new(config)), root)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        // A client that goes away early is what some tests are about.
        connections.spawn(connection(socket, acceptor.clone(), Arc::clone(&seen)).map(drop));
    }
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
        answer(path, query, port, &mut stream).await?;
        // These invite the client to use the connection again.
        if path != "/picture" && !path.starts_with("/redirect/") {
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
        "/picture" => format!("{ok}content-length: 7\r\n\r\npicture"),
        "/html" => format!("{ok}content-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"),
        "/chunked" => {
            let body = query
                .parse()
                .map_or("picture".to_owned(), |length| "x".repeat(length));
            format!(
                "{ok}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
        }
        "/sized" => {
            let body = "x".repeat(query.parse().unwrap());
            format!("{ok}content-length: {query}\r\n\r\n{body}")
        }
        "/more-than-told" => format!("{ok}content-length: 3\r\n\r\npicture"),
        "/less-than-told" => format!("{ok}content-length: 9\r\n\r\npicture"),
        "/cut-chunk" => format!("{ok}transfer-encoding: chunked\r\n\r\n9\r\npicture"),
        "/encoded" => format!("{ok}content-encoding: {query}\r\ncontent-length: 1\r\n\r\nx"),
        "/status" => format!("HTTP/1.1 {query} Some\r\ncontent-length: 0\r\n\r\n"),
        "/redirect/1" => redirect("301 Moved", &format!("https://public.test:{port}/picture")),
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
        "/relative" => redirect("302 Found", "../picture"),
        "/loop" => redirect("302 Found", "/loop"),
        "/to" => redirect("302 Found", query),
        "/nowhere" => "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/slow-redirects" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redirect("302 Found", "/slow-redirects")
        }
        _ => return never_end(path, stream).await,
    };
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

fn redirect(status: &str, location: &str) -> String {
    format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

async fn never_end(path: &str, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let kilobyte = "x".repeat(1024);
    let chunk = format!("400\r\n{kilobyte}\r\n");
    let (head, piece, pause_ms) = match path {
        "/endless" => ("transfer-encoding: chunked\r\n\r\n", chunk.as_str(), 0),
        "/endless-until-close" => ("\r\n", kilobyte.as_str(), 0),
        "/drip" => ("content-length: 9999\r\n\r\n", "x", 50),
        "/head-drip" => ("x-long: ", "x", 50),
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
