//! Serving connections: how many there may be and from where, how long each may take over what, and an
//! end that waits for answers under way. axum's own loop has none of the first two.

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
use watched::{Answer, RequestBody};

/// Clients that come all at once must not see refused connections: the usual 128 drops them.
const BACKLOG: u32 = 4096;
/// Of a connection, for what it reads and for what it writes: hyper's own 400 kB make nothing faster.
const BUFFER_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Of an answer, in the kernel and not yet sent: more would hide for longer that nobody reads it.
const UNSENT_BYTES: u32 = 64 * 1024;
/// After the system refused a connection, as when it has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// For a connection of the reserve, while all others wait in the backlog; and between two looks.
const ADMIT_WAIT: Duration = Duration::from_millis(250);
const ADMIT_RETRY: Duration = Duration::from_millis(5);
/// A client that waits for an image sends nothing: it is asked so often whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Takes the address, if it is free. Nobody can connect before it is listened on.
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

/// Lets clients connect.
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Serves until the doors are closed, then until the answers under way are sent. While a shutdown waits
/// for tasks, clients can still poll, and load balancers hear that nothing new is taken.
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
            () = shutdown.doors_closed() => break,
            accepted = listener.accept() => server.take(accepted).await,
        }
    }
    drop(listener);
    server.connections.close();
    server.connections.wait().await;
}

/// Time-outs are [`Connection`]'s: one clock for all that a peer can be slow at.
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
                    "a connection could not be accepted"
                );
                // It may be that this process has no file descriptors left.
                self.table.make_room();
                return tokio::time::sleep(ACCEPT_RETRY).await;
            }
        };
        if let Err(error) = set_options(&stream, self.patience.write) {
            let error = &error as &dyn Error;
            tracing::debug!(error, "an option of a connection was refused");
        }
        let given_up = Instant::now() + ADMIT_WAIT;
        loop {
            match self.table.admit(peer) {
                Admission::Admitted(entry) => return self.keep(stream, entry),
                Admission::Later if Instant::now() < given_up => {
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

    /// Serves a connection in a task of its own until either side ends it.
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
                    // First: what is here already is read before anybody finds it idle.
                    biased;
                    ended = serving.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!(error = &error as &dyn Error, "a connection ended early");
                        }
                        break;
                    }
                    () = connection.shed(), if !is_shed => {
                        if connection.rank(Instant::now()).is_some() {
                            break tracing::debug!("a connection made room for others");
                        }
                        is_shed = true;
                        overdue.set(connection.overdue(Patience::LAST));
                    }
                    late = overdue.as_mut() => break tracing::debug!("a connection {late}"),
                    () = shutdown.begun(), if step == Step::Open => {
                        step = Step::Ending;
                        overdue.set(connection.overdue(patience.while_ending()));
                    }
                    () = shutdown.doors_closed(), if step != Step::Last => {
                        step = Step::Last;
                        overdue.set(connection.overdue(Patience::LAST));
                    }
                }
            }
            drop(entry);
        });
    }
}

/// How far the shutdown has come, for a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Ending,
    Last,
}

async fn answer(
    router: Router,
    connection: Arc<Connection>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut request = request.map(|body| RequestBody::new(body, Arc::clone(&connection)));
    request.extensions_mut().insert(Arc::clone(&connection));
    let request: Request = request.map(axum::body::Body::new);
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| Answer::new(body, connection)))
}

/// An answer is one write: waiting for more only delays it. And a peer that is gone, or takes nothing of
/// what it is sent, is noticed by the kernel too.
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
