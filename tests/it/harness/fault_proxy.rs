//! A proxy on loopback that breaks what passes through it on demand: it delays, cuts, resets, swallows, or
//! lets the flows that stand go silent without closing them, as a NAT or a balancer does that forgets them.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};

const BUFFER_BYTES: usize = 64 * 1024;

/// Where what passes goes to.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What happens to flows: to those that stand, and to new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Each piece is held back for so long.
    Latency(Duration),
    /// A flow is closed once so many bytes have come from the target.
    CutAfter(u64),
    /// Flows are reset, and new ones too.
    Reset,
    /// Nothing passes, and nothing is closed: new flows are accepted and stay silent.
    BlackHole,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    fault: Fault,
    /// Flows with a lower number than this are silent for good.
    frozen_below: u64,
    opened: u64,
}

/// Forwards connections to its target for as long as it lives.
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    /// Dropped with the proxy, and every flow with it.
    _accepting: JoinSet<()>,
}

impl FaultProxy {
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

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a fault in force for all flows, and takes the one before it away.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// The flows that stand go silent for good, without being closed. New ones are as good as ever.
    pub fn freeze(&self) {
        self.state
            .send_modify(|state| state.frozen_below = state.opened);
    }

    /// How many flows were opened so far.
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

/// Carries both ways until one side closes or breaks; then both are closed.
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

/// `sent` counts towards a cut, where the direction is one that is cut.
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
        // What is held back here is not lost: it passes once the fault is over.
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
