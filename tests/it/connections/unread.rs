//! Clients that send requests and do not read the answers.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{PATIENCE, answer, exchange, sent, status};
use crate::harness::{TestApp, database::TestDatabase, images, process::Setup};

/// A connection with a small receive buffer.
async fn narrow(url: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = url.trim_start_matches("http://").parse().unwrap();
    socket.connect(address).await.unwrap()
}

/// Sends requests without reading anything, until no more can be sent.
async fn ask_and_never_read(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(100);
    let stuck = Duration::from_millis(300);
    while let Ok(Ok(())) = timeout(stuck, stream.write_all(request.as_bytes())).await {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_unread_answers_is_closed() {
    let app = TestApp::with("[server]\nwrite_timeout_ms = 1000").await;
    let mut stream = narrow(&app.url).await;
    ask_and_never_read(&mut stream, "/healthz").await;
    let began = Instant::now();
    // Still nothing is read: a write error shows that the connection is closed.
    while stream.write_all(b"GET").await.is_ok() {
        assert!(began.elapsed() < PATIENCE);
        let ended = timeout(
            Duration::from_secs(5),
            stream.ready(tokio::io::Interest::ERROR),
        );
        drop(ended.await);
    }
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_everything() {
    let app = TestApp::with("[server]\nwrite_timeout_ms = 700").await;
    let caller = app.caller("1").await;
    let image = images::noise(800, 600);
    let upload = caller.upload(image.clone(), "a.png").await.json();
    let path = upload["url"].as_str().unwrap().replace(&app.url, "");
    let mut stream = narrow(&app.url).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mut piece) = (0, vec![0; 100_000]);
    loop {
        let length = stream.read(&mut piece).await.unwrap();
        if length == 0 {
            break;
        }
        read += length;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(read > image.len(), "{read} of {}", image.len());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_clients_that_never_read() {
    let database = TestDatabase::create().await;
    let gateway = Setup::on(&database, "[server]\nwrite_timeout_ms = 60000").serve();
    let url = gateway.url();
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut stream = narrow(&url).await;
        ask_and_never_read(&mut stream, "/healthz").await;
        unread.push(stream);
    }
    // Nor for a head or a body that drips.
    unread.push(sent(&url, "GET /healthz HTTP/1.1\r\nHos").await);
    let caller = database.caller(&url, "1").await;
    unread.push(sent(&url, &(super::generation(&caller, 999) + "{")).await);

    let began = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.wait_end().success());

    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    let log = gateway.stderr();
    assert!(log.len() < 5_000, "{} bytes: {}", log.len(), &log[..2_000]);
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_writes_a_limited_number_of_log_lines() {
    let database = TestDatabase::create().await;
    let gateway = Setup::on(&database, "[server]\ntrusted_proxies = []").serve();
    let mut stream = sent(&gateway.url(), "").await;
    let request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    for _ in 0..1_100 {
        stream.write_all(request).await.unwrap();
        assert_eq!(status(&answer(&mut stream).await), 404);
    }
    let close = "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&exchange(&gateway.url(), close).await), 404);
    gateway.end();
    let lines = gateway.stderr().matches("answered").count();
    assert_eq!(
        lines, 1_001,
        "of the first connection 1,000, and of the second all"
    );
}
