//! A proxy on loopback that breaks its traffic on demand. It delays, cuts, resets and discards, or lets open
//! connections go silent without closing them, as a NAT or a load balancer does that drops its state.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};

const BUFFER_BYTES: usize = 64 * 1024;

/// Where connections are forwarded to.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The fault in force, for open and for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Delays each chunk by this long.
    Latency(Duration),
    /// Closes a connection after this many bytes from the target.
    CutAfter(u64),
    /// Resets open connections and new ones.
    Reset,
    /// Passes nothing and closes nothing: new connections are accepted and stay silent.
    BlackHole,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    fault: Fault,
    /// Connections with a lower number than this are silent for good.
    frozen_below: u64,
    opened: u64,
}

/// Forwards connections to its target until it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    /// Dropped with the proxy, which ends every connection.
    _accepting: JoinSet<()>,
}

impl FaultProxy {
    /// Listens on a free port of loopback.
    pub async fn start(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::channel(State::default()).0);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, Arc::clone(&state)));
        Self {
            address,
            state,
            _accepting: accepting,
        }
    }

    /// The address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the fault that is in force, for all connections.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// Silences the open connections for good, without closing them. New connections are not affected.
    pub fn freeze(&self) {
        self.state
            .send_modify(|state| state.frozen_below = state.opened);
    }

    /// How many connections were opened so far.
    pub fn opened(&self) -> u64 {
        self.state.borrow().opened
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

async fn accept(listener: TcpListener, target: Target, state: Arc<watch::Sender<State>>) {
    let mut flows = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let mut number = 0;
        state.send_modify(|state| {
            number = state.opened;
            state.opened += 1;
        });
        let (target, state) = (target.clone(), state.subscribe());
        flows.spawn(async move {
            if let Ok(server) = connect(target).await {
                flow(number, client, server, state).await;
            }
        });
    }
}

async fn connect(target: Target) -> io::Result<(Reader, Writer)> {
    Ok(match target {
        Target::Tcp(address) => {
            let server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            let (reader, writer) = server.into_split();
            (Box::new(reader), Box::new(writer))
        }
        Target::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            (Box::new(reader), Box::new(writer))
        }
    })
}

/// Forwards both ways until one side closes or breaks, then closes both.
async fn flow(
    number: u64,
    mut client: TcpStream,
    (from_server, to_server): (Reader, Writer),
    mut state: watch::Receiver<State>,
) {
    client.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.split();
    let up = carry(number, from_client, to_server, state.clone(), None);
    let down = carry(number, from_server, to_client, state.clone(), Some(0));
    let reset = tokio::select! {
        () = up => false,
        () = down => false,
        _ = state.wait_for(|state| state.fault == Fault::Reset) => true,
    };
    if reset {
        client.set_zero_linger().unwrap();
    }
}

/// `sent` counts bytes toward a cut, in the direction that can be cut.
async fn carry(
    number: u64,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    mut sent: Option<u64>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let passes =
            |state: &State| number >= state.frozen_below && state.fault != Fault::BlackHole;
        // Bytes held back here are not lost: they pass once the fault is over.
        let Ok(fault) = state.wait_for(passes).await.map(|state| state.fault) else {
            return;
        };
        let mut piece = &buffer[..read];
        match (fault, &mut sent) {
            (Fault::Latency(delay), _) => tokio::time::sleep(delay).await,
            (Fault::CutAfter(most), Some(sent)) => {
                let left = usize::try_from(most.saturating_sub(*sent)).unwrap_or(usize::MAX);
                piece = &piece[..piece.len().min(left)];
                *sent += piece.len() as u64;
            }
            _ => {}
        }
        if to.write_all(piece).await.is_err() || piece.len() < read {
            return;
        }
    }
}
