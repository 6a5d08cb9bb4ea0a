//! Connections that are slow to ask, or to send what they ask with.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::{HEALTH, answer, connect, generation, sent, status, until_closed};
use crate::harness::TestApp;

const LIMITS: &str =
    "[server]\nheader_timeout_ms = 500\nidle_timeout_ms = 3000\nbody_idle_timeout_ms = 500\n";

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_early() {
    let app = TestApp::with(LIMITS).await;
    for text in ["", "GET /healthz HTTP/1.1\r\nHos"] {
        let mut stream = sent(&app.url, text).await;
        let (_, after) = until_closed(&mut stream).await;
        assert!(
            after < Duration::from_secs(3),
            "{text:?} was kept for {after:?}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_head_that_drips_has_no_more_time_than_one_that_does_not_come() {
    let app = TestApp::with(LIMITS).await;
    let mut first = connect(&app.url).await;
    // Nor has one after a request, though the connection itself may be idle for longer.
    let mut second = sent(&app.url, HEALTH).await;
    answer(&mut second).await;
    for stream in [&mut first, &mut second] {
        let mut dripped = 0;
        for byte in HEALTH.bytes().cycle() {
            // The end never comes.
            let byte = if byte == b'\n' { b'x' } else { byte };
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            dripped += 1;
        }
        assert!(dripped < 40, "{dripped}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_connection_is_kept_for_a_next_request_longer_than_for_a_first() {
    let app = TestApp::with(LIMITS).await;
    let mut stream = connect(&app.url).await;
    for _ in 0..2 {
        stream.write_all(HEALTH.as_bytes()).await.unwrap();
        assert_eq!(status(&answer(&mut stream).await), 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(stream);
    app.finish().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_and_ended() {
    let app = TestApp::with(LIMITS).await;
    let caller = app.caller("1.00").await;
    let mut stream = sent(&app.url, &(generation(&caller, 100) + "{\"model\":")).await;
    let (answer, after) = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("the body did not arrive in time"),
        "{answer}"
    );
    assert!(after < Duration::from_secs(5), "{after:?}");
    app.finish().await;
}
