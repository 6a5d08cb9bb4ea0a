//! Serves connections: limits their number in total and per address, applies time-outs to each, and drains
//! responses at shutdown. axum's own accept loop has neither limits nor time-outs.

mod connection;
mod refusal;
mod stream;
mod table;
mod watched;

use std::{convert::Infallible, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{config, shutdown::Shutdown};

pub(super) use connection::Connection;
use connection::Patience;
use refusal::Refusal;
use stream::Stream;
use table::{Admission, Entry, Table};
use watched::{RequestBody, ResponseBody};

/// The listen backlog. The usual 128 drops connections when many clients connect at once.
const BACKLOG: u32 = 4096;
/// Size of a connection's read buffer and of its write buffer; hyper's default of 400 kB is no faster.
const BUFFER_BYTES: usize = 64 * 1024;
/// Maximum size of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Unsent response bytes in the kernel. With more, a client that stops reading would be noticed later.
const UNSENT_BYTES: u32 = 64 * 1024;
/// Wait after a failed accept, for example without free file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a connection waits for the reserve, while all others wait in the backlog.
const ADMIT_WAIT: Duration = Duration::from_millis(250);
/// Interval between two tries to admit it.
const ADMIT_RETRY: Duration = Duration::from_millis(5);
/// TCP keepalive: a client that waits for an image sends nothing, so keepalive probes detect one that is gone.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Binds the address; errors if it is in use. Clients cannot connect before [`listen`].
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Starts to listen, so that clients can connect.
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Accepts connections until [`Shutdown::stop_accepting`], then drains the open ones. While a shutdown waits for
/// tasks, clients can still poll, and load balancers see from `/readyz` that the gateway takes no new requests.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &config::Server,
    shutdown: &Shutdown,
) {
    let server = Server {
        http: http(),
        router,
        patience: Patience::of(limits),
        table: Table::new(limits),
        refusal: Refusal::new(limits),
        shutdown: shutdown.clone(),
        connections: TaskTracker::new(),
    };
    loop {
        tokio::select! {
            () = shutdown.accepting_stopped() => break,
            accepted = listener.accept() => server.take(accepted).await,
        }
    }
    drop(listener);
    server.connections.close();
    server.connections.wait().await;
}

/// Disables hyper's head time-out: [`Connection`] applies all time-outs of a peer.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.header_read_timeout(None)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES);
    http
}

struct Server {
    http: http1::Builder,
    router: Router,
    patience: Patience,
    table: Table,
    refusal: Refusal,
    shutdown: Shutdown,
    connections: TaskTracker,
}

impl Server {
    async fn take(&self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "could not accept a connection"
                );
                // The process may have no free file descriptors: closing connections frees some.
                self.table.make_room();
                return tokio::time::sleep(ACCEPT_RETRY).await;
            }
        };
        if let Err(error) = set_options(&stream, self.patience.write) {
            let error = &error as &dyn Error;
            tracing::debug!(error, "could not set a socket option");
        }
        let give_up_at = Instant::now() + ADMIT_WAIT;
        loop {
            match self.table.admit(peer) {
                Admission::Admitted(entry) => return self.keep(stream, entry),
                Admission::Later if Instant::now() < give_up_at => {
                    tokio::time::sleep(ADMIT_RETRY).await;
                }
                Admission::Later => self.table.give_up(),
                Admission::Refused => {
                    let refused = self.refusal.send(stream);
                    refused.map(|refused| self.connections.spawn(refused));
                    return;
                }
            }
        }
    }

    /// Serves a connection in its own task until either side closes it.
    fn keep(&self, stream: TcpStream, entry: Entry) {
        let connection = Arc::clone(entry.connection());
        let (router, served) = (self.router.clone(), Arc::clone(&connection));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            answer(router.clone(), Arc::clone(&served), request)
        });
        let io = TokioIo::new(Stream::new(stream, Arc::clone(&connection)));
        let serving = self.http.serve_connection(io, service);
        let (patience, shutdown) = (self.patience, self.shutdown.clone());
        self.connections.spawn(async move {
            let mut serving = std::pin::pin!(serving);
            let mut overdue = std::pin::pin!(connection.overdue(patience));
            let (mut step, mut is_shed) = (Step::Open, false);
            loop {
                tokio::select! {
                    // Polled first, so that received bytes are read before the connection counts as idle.
                    biased;
                    ended = serving.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!(error = &error as &dyn Error, "a connection ended early");
                        }
                        break;
                    }
                    () = connection.shed(), if !is_shed => {
                        if connection.rank(Instant::now()).is_some() {
                            break tracing::debug!("closed a connection to admit another");
                        }
                        is_shed = true;
                        overdue.set(connection.overdue(Patience::LAST));
                    }
                    late = overdue.as_mut() => break tracing::debug!("closed a connection: {late}"),
                    () = shutdown.begun(), if step == Step::Open => {
                        step = Step::Draining;
                        overdue.set(connection.overdue(patience.while_draining()));
                    }
                    () = shutdown.accepting_stopped(), if step != Step::Last => {
                        step = Step::Last;
                        overdue.set(connection.overdue(Patience::LAST));
                    }
                }
            }
            drop(entry);
        });
    }
}

/// The stage of the shutdown, as a connection sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// No shutdown.
    Open,
    /// Waiting for tasks; new connections are still accepted.
    Draining,
    /// Tasks have ended; only responses remain to be sent.
    Last,
}

async fn answer(
    router: Router,
    connection: Arc<Connection>,
    request: hyper::Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut request = request.map(|body| RequestBody::new(body, Arc::clone(&connection)));
    request.extensions_mut().insert(Arc::clone(&connection));
    let request: Request = request.map(axum::body::Body::new);
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| ResponseBody::new(body, connection)))
}

/// Disables Nagle's algorithm, since a response is one write that waiting would only delay. Lets the kernel also
/// detect a peer that is gone or stops reading.
fn set_options(stream: &TcpStream, write_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    socket.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE_INTERVAL))?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(write_timeout))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    }
    Ok(())
}
