//! Verifies the proxy that other tests break connections with.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
    task::JoinSet,
};

use crate::harness::{
    fault_proxy::{Fault, FaultProxy, Target},
    loopback::{Loopback, Serving},
};

/// Echoes every byte until it is dropped.
async fn echo() -> (SocketAddr, Serving) {
    let loopback = Loopback::bind().await;
    let address = loopback.address();
    let serving = loopback.accept(|stream| async {
        let (mut from, mut to) = stream.into_split();
        tokio::io::copy(&mut from, &mut to).await
    });
    (address, serving)
}

async fn said(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn open_connections_go_silent_and_new_ones_work() {
    let (address, _serving) = echo().await;
    let proxy = FaultProxy::start(Target::Tcp(address)).await;
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(said(&mut old, b"one").await.unwrap(), b"one");
    proxy.freeze();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(said(&mut new, b"two").await.unwrap(), b"two");
    let silent = tokio::time::timeout(Duration::from_millis(100), said(&mut old, b"three"));
    assert!(silent.await.is_err(), "silent, and not closed");
    assert_eq!(proxy.opened(), 2);
}

#[tokio::test]
async fn connections_are_cut_reset_and_delayed() {
    let (address, _serving) = echo().await;
    let proxy = FaultProxy::start(Target::Tcp(address)).await;
    let mut held = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(said(&mut held, b"one").await.unwrap(), b"one");
    proxy.set(Fault::BlackHole);
    held.write_all(b"two").await.unwrap();
    let mut answer = [0; 3];
    let silent = tokio::time::timeout(Duration::from_millis(100), held.read(&mut answer));
    assert!(silent.await.is_err());
    proxy.set(Fault::None);
    held.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"two", "passes once the fault is over");

    proxy.set(Fault::CutAfter(2));
    let mut cut = TcpStream::connect(proxy.address()).await.unwrap();
    cut.write_all(b"three").await.unwrap();
    let mut came = Vec::new();
    cut.read_to_end(&mut came).await.unwrap();
    assert_eq!(came, b"th");

    proxy.set(Fault::Reset);
    let error = said(&mut held, b"four").await.unwrap_err();
    let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    assert!(reset.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn chunks_are_delayed_to_and_from_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = [0; 3];
        stream.read_exact(&mut text).await.unwrap();
        stream.write_all(&text).await.unwrap();
    });
    let proxy = FaultProxy::start(Target::Unix(path)).await;
    let delay = Duration::from_millis(30);
    proxy.set(Fault::Latency(delay));
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let began = Instant::now();
    assert_eq!(said(&mut stream, b"one").await.unwrap(), b"one");
    assert!(began.elapsed() >= 2 * delay);
}
