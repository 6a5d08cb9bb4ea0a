//! Memory for bodies: taken as they arrive, with a share for each account, and lost by clients that are too slow.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use serde_json::json;
use tokio::time::sleep;

use super::{Sending, asked};
use crate::harness::{
    TestApp,
    caller::{Caller, body_of},
};

const SETTINGS: &str = "
    [server]
    json_bytes_max = 1_048_576
    account_buffer_bytes_max = 1_048_576
    buffer_bytes_max = 4_194_304";
const JSON: &str = "application/json";
const FORM: &str = "multipart/form-data; boundary=x";

/// A body of this many bytes.
fn body(bytes: usize) -> Vec<u8> {
    let empty = asked(json!({"x": ""})).to_string().len();
    asked(json!({"x": "x".repeat(bytes - empty)}))
        .to_string()
        .into_bytes()
}

/// Waits until bodies hold this many bytes.
async fn wait_for(app: &TestApp, bytes: usize) {
    let began = Instant::now();
    while app.app.buffers.held() != bytes {
        let held = app.app.buffers.held();
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{held} bytes are held"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

async fn sent(caller: &Caller, body: &[u8]) -> String {
    let mut sending = Sending::begin(caller, JSON, body.len()).await;
    sending.send(body).await;
    sending.answer().await
}

#[tokio::test]
async fn slow_bodies_of_one_key_shut_out_nobody_else() {
    let app = TestApp::with(SETTINGS).await;
    let (greedy, other) = (app.caller("9").await, app.caller("9").await);
    let (large, small) = (body(900_000), body(60_000));
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(Sending::begin(&greedy, JSON, large.len()).await);
    }
    // Nothing of the body has arrived, so it holds nothing.
    let answer = sent(&greedy, &large).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");

    // Half of each of two bodies uses up the account's share. Other requests are refused at once.
    let half = &large[..large.len() / 2];
    slow.truncate(2);
    for sending in &mut slow {
        sending.send(half).await;
    }
    wait_for(&app, 1_048_576).await;
    let answer = sent(&greedy, &large).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"this account's request bodies hold 1048576 bytes of memory, as much as they may","type":"rate_limit_error","code":"concurrency_limit","param":null,"provider":"easel"}}"#);
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    for (caller, body) in [(&greedy, &small), (&other, &large), (&other, &small)] {
        let answer = sent(caller, body).await;
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }

    // The share is free again when they are gone.
    drop(slow);
    wait_for(&app, 0).await;
    assert!(sent(&greedy, &large).await.starts_with("HTTP/1.1 202 "));
    app.finish().await;
}

#[tokio::test]
async fn all_bodies_together_have_a_limit() {
    let app = TestApp::with(&SETTINGS.replace("4_194_304", "1_048_576")).await;
    let (greedy, other) = (app.caller("9").await, app.caller("9").await);
    let large = body(900_000);
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut sending = Sending::begin(&greedy, JSON, large.len()).await;
        sending.send(&large[..large.len() / 2]).await;
        slow.push(sending);
    }
    wait_for(&app, 1_048_576).await;
    let answer = sent(&other, &large).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"too many large request bodies at once","type":"server_error","code":null,"param":null,"provider":"easel"}}"#);
    drop(slow);
    wait_for(&app, 0).await;
    assert!(sent(&other, &large).await.starts_with("HTTP/1.1 202 "));
    app.finish().await;
}

#[tokio::test]
async fn the_text_parts_of_a_form_take_from_the_same_share() {
    let app = TestApp::with(SETTINGS).await;
    let (greedy, other) = (app.caller("9").await, app.caller("9").await);
    let mut slow = Sending::begin(&greedy, FORM, 10_000_000).await;
    slow.send(b"--x\r\ncontent-disposition: form-data; name=image\r\n\r\n")
        .await;
    slow.send(&vec![b'x'; 900_000]).await;
    let large = body(900_000);
    wait_for(&app, 1_048_576).await;
    let answer = sent(&greedy, &large).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(sent(&other, &large).await.starts_with("HTTP/1.1 202 "));

    // All together have the limit of a JSON body.
    drop(slow);
    let disposition = "content-disposition: form-data; name=image\r\n\r\n";
    let part = format!("--x\r\n{disposition}{}\r\n", "x".repeat(400_000));
    let mut over = Sending::begin(&other, FORM, part.len() * 3).await;
    over.send(part.repeat(3).as_bytes()).await;
    let answer = over.answer().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"the text parts exceed maximum 1048576 bytes in all","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    app.finish().await;
}

#[tokio::test]
async fn a_large_dripping_body_loses_its_share_and_a_small_one_may_drip() {
    let timeouts = "body_idle_timeout_ms = 500\nbody_bytes_per_s_min = 100_000";
    let app = TestApp::with(&format!("{SETTINGS}\n{timeouts}")).await;
    let caller = app.caller("9").await;
    let drip = async |body: Vec<u8>, at_once: usize| {
        let mut sending = Sending::begin(&caller, JSON, body.len()).await;
        sending.send(&body[..at_once]).await;
        let began = Instant::now();
        for byte in body[at_once..].chunks(1) {
            if began.elapsed() > Duration::from_secs(2) {
                break;
            }
            sending.send(byte).await;
            sleep(Duration::from_millis(50)).await;
        }
        sending.answer().await
    };
    let answer = drip(body(900_000), 300_000).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"the body arrives too slowly: a large one must bring 100000 bytes a second","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    let answer = drip(body(60_000), 59_980).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn a_form_that_drips_is_ended_when_its_time_is_over() {
    let timeouts = "body_idle_timeout_ms = 500\nbody_timeout_ms = 1500";
    let app = TestApp::with(&format!("{SETTINGS}\n{timeouts}")).await;
    let caller = app.caller("9").await;
    let mut sending = Sending::begin(&caller, FORM, 10_000).await;
    let head = b"--x\r\ncontent-disposition: form-data; name=prompt\r\n\r\n";
    sending.send(head).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1600) {
        sending.send(b"a").await;
        sleep(Duration::from_millis(100)).await;
    }
    let answer = sending.answer().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_snapshot!(body_of(&answer), @r#"{"error":{"message":"the body did not arrive in time","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    app.finish().await;
}
