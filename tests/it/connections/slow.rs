//! Connections that are slow to send a head or a body.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::{HEALTH, answer, connect, generation, sent, status, until_closed};
use crate::harness::{TestApp, caller::body_of};

const LIMITS: &str =
    "[server]\nheader_timeout_ms = 500\nidle_timeout_ms = 3000\nbody_idle_timeout_ms = 500\n";

#[tokio::test]
async fn a_connection_without_a_request_is_closed_early() {
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
async fn a_dripping_head_has_no_more_time_than_a_missing_one() {
    let app = TestApp::with(LIMITS).await;
    let mut first = connect(&app.url).await;
    // A second head has no more time, although the idle connection itself may stay longer.
    let mut second = sent(&app.url, HEALTH).await;
    answer(&mut second).await;
    for stream in [&mut first, &mut second] {
        let mut dripped = 0;
        for byte in HEALTH.bytes().cycle() {
            // The head never ends.
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
async fn a_connection_waits_longer_for_a_later_request_than_for_the_first() {
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
async fn a_stalled_body_is_answered_and_the_connection_closed() {
    let app = TestApp::with(LIMITS).await;
    let caller = app.caller("1.00").await;
    let mut stream = sent(&app.url, &(generation(&caller, 100) + "{\"model\":")).await;
    let (answer, after) = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    insta::assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"the body did not arrive in time","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    assert!(after < Duration::from_secs(5), "{after:?}");
    app.finish().await;
}
