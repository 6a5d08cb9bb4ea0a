//! Serving connections: a deadline for each request's head, a cap on their number, and an end that
//! waits for answers under way. axum's own loop has neither of the first two.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{config, shutdown::Shutdown};

/// Clients that come all at once must not see refused connections: the usual 128 drops them.
const BACKLOG: u32 = 4096;
/// Of a connection, for what it reads and for what it writes: hyper's own 400 kB make nothing faster.
const BUFFER_BYTES: usize = 64 * 1024;
/// After the system refused a connection, as when it has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout())
        .max_buf_size(BUFFER_BYTES);
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.doors_closed() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let asked = CancellationToken::new();
        let (router, first) = (router.clone(), asked.clone());
        let service = TowerToHyperService::new(router.map_request(move |request| {
            first.cancel();
            request
        }));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let watched = graceful.watch(connection);
        let silent = still_silent(asked, limits.header_timeout());
        shutdown.spawn_background(async move {
            tokio::select! {
                ended = watched => if let Err(error) = ended {
                    tracing::debug!(error = &error as &dyn Error, "a connection ended early");
                },
                () = silent => tracing::debug!("a connection sent no request in time"),
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Resolves if no request has come within `patience`. hyper's own deadline for a head is also the one for
/// an idle connection's next request, and so has to be longer than a proxy keeps its connections.
async fn still_silent(asked: CancellationToken, patience: Duration) {
    if tokio::time::timeout(patience, asked.cancelled())
        .await
        .is_ok()
    {
        std::future::pending::<()>().await;
    }
}

/// The next connection, once there is a place for it: beyond the cap, clients wait in the backlog.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // An answer is one write: waiting for more only delays it.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(error = &error as &dyn Error, "TCP_NODELAY was refused");
            }
            Some((stream, place))
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn Error,
                "a connection could not be accepted"
            );
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}
