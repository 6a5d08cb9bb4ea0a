//! One connection for one request. HTTP libraries limit what they return but not what they skip, such as endless
//! interim responses. This module counts the bytes of the connection itself.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client::conn::http1,
    header::{ACCEPT, ACCEPT_ENCODING, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::{Position, Url};

use super::{error::RequestFault, resolve::GuardedResolver};

/// Limit for everything but the body: response head, framing and TLS.
const OVERHEAD_BYTES_MAX: u64 = 1024 * 1024;

/// Connects to addresses that the guard permits.
#[derive(Debug)]
pub(super) struct Connector {
    /// Resolves names to permitted addresses.
    pub(super) resolver: GuardedResolver,
    /// How the server's certificate is checked.
    pub(super) tls: Arc<ClientConfig>,
    /// For resolving the name, connecting and the TLS handshake together.
    pub(super) connect_timeout: Duration,
    /// The longest silence of the server.
    pub(super) idle_timeout: Duration,
    /// Maximum bytes of a body.
    pub(super) bytes_max: u64,
}

/// A response whose body is still arriving. Dropping it closes the connection.
pub(super) struct Answer {
    /// Its status and headers; the body is read through it.
    pub(super) response: Response<Incoming>,
    idle_timeout: Duration,
    _connection: JoinSet<()>,
}

impl Answer {
    /// The declared length of the body in bytes, if it is declared.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.response.body().size_hint().exact()
    }

    /// The next piece of the body, without chunk framing.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, RequestFault> {
        loop {
            let frame = timeout(self.idle_timeout, self.response.body_mut().frame()).await;
            let frame = frame.map_err(|_elapsed| RequestFault::NoAnswer(self.idle_timeout))?;
            match frame.transpose()?.map(hyper::body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(piece)) => return Ok(Some(piece)),
                // Trailers after the body are ignored.
                Some(Err(_trailers)) => {}
            }
        }
    }
}

impl Connector {
    /// Requests a URL that the guard has permitted. Returns the response once its head has arrived.
    pub(super) async fn get(&self, url: &Url) -> Result<Answer, RequestFault> {
        let request = request(url)?;
        let stream = timeout(self.connect_timeout, self.connect(url)).await;
        let stream = stream.unwrap_or_else(|_elapsed| {
            Err(RequestFault::Connect(io::ErrorKind::TimedOut.into()))
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The task reads the response body from the connection for as long as the response is kept.
        let mut running = JoinSet::new();
        running.spawn(async move {
            // The response reports how the connection ended.
            let _ = connection.await;
        });
        let response = timeout(self.idle_timeout, sender.send_request(request)).await;
        let response = response.map_err(|_elapsed| RequestFault::NoAnswer(self.idle_timeout))?;
        Ok(Answer {
            response: response?,
            idle_timeout: self.idle_timeout,
            _connection: running,
        })
    }

    async fn connect(&self, url: &Url) -> Result<TlsStream<Metered>, RequestFault> {
        let port = url.port_or_known_default().ok_or(RequestFault::Url)?;
        let (addresses, name) = match url.host().ok_or(RequestFault::Url)? {
            url::Host::Ipv4(address) => (vec![address.into()], IpAddr::from(address).into()),
            url::Host::Ipv6(address) => (vec![address.into()], IpAddr::from(address).into()),
            url::Host::Domain(name) => {
                let known = ServerName::try_from(name.trim_end_matches('.').to_owned());
                let known = known.map_err(|_invalid| RequestFault::Url)?;
                (self.resolver.resolve(name).await?, known)
            }
        };
        let tcp = self.reach(&addresses, port).await?;
        let metered = Metered {
            stream: tcp,
            bytes_left: self.bytes_max.saturating_add(OVERHEAD_BYTES_MAX),
        };
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let stream = tls.connect(name, metered).await;
        stream.map_err(RequestFault::Connect)
    }

    /// Connects to the first address that answers. Each has an equal share of the connect timeout.
    async fn reach(&self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, RequestFault> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let share = self.connect_timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        for address in addresses {
            self.resolver.guard.check_address(*address)?;
            let connecting = TcpStream::connect(SocketAddr::new(*address, port));
            match timeout(share, connecting).await {
                Ok(Ok(stream)) => {
                    // In case the connected address differs from the checked one.
                    let peer = stream.peer_addr().map_err(RequestFault::Connect)?;
                    self.resolver.guard.check_address(peer.ip())?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = error,
                Err(_elapsed) => failed = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(RequestFault::Connect(failed))
    }
}

/// The request contains nothing that identifies the caller.
fn request(url: &Url) -> Result<Request<Empty<Bytes>>, RequestFault> {
    let host = url.host_str().ok_or(RequestFault::Url)?;
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(ACCEPT, "image/*")
        .header(USER_AGENT, concat!("easel/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT_ENCODING, "identity")
        .header(HOST, host)
        .body(Empty::new())
        .map_err(|_invalid| RequestFault::Url)
}

/// A connection that fails once more bytes than allowed arrive.
#[derive(Debug)]
struct Metered {
    stream: TcpStream,
    bytes_left: u64,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = (buffer.filled().len() - before) as u64;
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left =
            left.ok_or_else(|| io::Error::other("response exceeds the byte limit"))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
