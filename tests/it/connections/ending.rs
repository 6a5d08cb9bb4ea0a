//! A shutdown as a connection-level load balancer sees it.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::{HEALTH, answer, connect, sent, status, until_closed};
use crate::harness::TestApp;

#[tokio::test]
async fn idle_connections_are_closed_while_new_ones_are_still_answered() {
    let app = TestApp::start().await;
    let mut idle = sent(&app.url, HEALTH).await;
    answer(&mut idle).await;
    let mut active = sent(&app.url, HEALTH).await;
    answer(&mut active).await;

    app.begin_shutdown();

    // A request that is in flight when the shutdown begins is answered.
    active.write_all(HEALTH.as_bytes()).await.unwrap();
    let (answered, _) = until_closed(&mut active).await;
    assert_eq!(status(&answered), 200);
    assert!(answered.contains("\r\nconnection: close\r\n"), "{answered}");
    let began = Instant::now();
    assert_eq!(until_closed(&mut idle).await.0, "");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    // New connections are accepted and served until the balancer has noticed the shutdown.
    let mut new = connect(&app.url).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    new.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let (answered, _) = until_closed(&mut new).await;
    assert_eq!(status(&answered), 503);
    assert!(
        answered.contains("the gateway is shutting down"),
        "{answered}"
    );
    assert!(answered.contains("\r\nconnection: close\r\n"), "{answered}");
    app.finish().await;
}

/// A client that sends one request after the other on one connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_on_keep_alive_sees_no_broken_connection() {
    let app = TestApp::start().await;
    let url = app.url.clone();
    let asking = super::spawn(async move {
        let mut stream = connect(&url).await;
        loop {
            stream.write_all(HEALTH.as_bytes()).await.unwrap();
            let answer = answer(&mut stream).await;
            assert_eq!(status(&answer), 200);
            if answer.contains("\r\nconnection: close\r\n") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Nothing is in flight: the shutdown ends at once.
    app.finish().await;
    asking.await.unwrap();
}
