//! Connections that are slow, silent or many.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::TestApp;

const LIMITS: &str =
    "[server]\nheader_timeout_ms = 500\nidle_timeout_ms = 3000\nbody_idle_timeout_ms = 500\n";

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.url.trim_start_matches("http://"))
        .await
        .unwrap()
}

/// What comes until the other side closes, and when it did.
async fn until_closed(stream: &mut TcpStream) -> (String, Duration) {
    let (mut text, began) = (String::new(), Instant::now());
    let read = timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await;
    assert!(matches!(read, Ok(Ok(_))), "{read:?}");
    (text, began.elapsed())
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_early() {
    let app = TestApp::with(LIMITS).await;
    for sent in ["", "GET /healthz HTTP/1.1\r\nHos"] {
        let mut stream = connect(&app).await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let (_, after) = until_closed(&mut stream).await;
        assert!(
            after < Duration::from_secs(3),
            "{sent:?} was kept for {after:?}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_connection_is_kept_for_a_next_request_longer_than_for_a_first() {
    let app = TestApp::with(LIMITS).await;
    let mut stream = connect(&app).await;
    let mut answer = [0; 1024];
    for _ in 0..2 {
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let length = stream.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(stream);
    app.finish().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_and_ended() {
    let app = TestApp::with(LIMITS).await;
    let caller = app.caller("1.00").await;
    let mut stream = connect(&app).await;
    let head = format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"model\":",
        caller.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (answer, after) = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("the body did not arrive in time"),
        "{answer}"
    );
    assert!(after < Duration::from_secs(5), "{after:?}");
    app.finish().await;
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_place() {
    let app = TestApp::with("[server]\nconnections_max = 2\n").await;
    let mut held = vec![connect(&app).await, connect(&app).await];
    let mut third = connect(&app).await;
    third
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let early = timeout(Duration::from_millis(300), third.read_to_end(&mut answer)).await;
    assert!(early.is_err(), "it was answered though there was no place");
    held.clear();
    timeout(Duration::from_secs(5), third.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    app.finish().await;
}
