//! Bodies of requests without a valid key: the gateway does not wait for them.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::{answer, connect, sent, status, until_closed};
use crate::harness::TestApp;

fn upload(key: &str, length: usize) -> String {
    format!(
        "POST /v1/uploads/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_stranger_is_answered_at_once_while_the_body_drips() {
    let app = TestApp::start().await;
    let began = Instant::now();
    let mut stream = sent(&app.url, &(upload("sk_wrong", 1_000_000) + "--x")).await;
    let answer = answer(&mut stream).await;
    assert_eq!(status(&answer), 401);
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    // It keeps dripping.
    while stream.write_all(b"-").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(6));
    }
    app.finish().await;
}

#[tokio::test]
async fn a_stranger_that_reads_only_after_sending_all_reads_the_401() {
    let app = TestApp::start().await;
    let length = 5 << 20;
    let mut stream = sent(&app.url, &upload("sk_wrong", length)).await;
    stream.write_all(&vec![b'-'; length]).await.unwrap();
    let (answer, _) = until_closed(&mut stream).await;
    assert_eq!(status(&answer), 401, "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn a_small_body_without_a_key_costs_no_connection() {
    let app = TestApp::start().await;
    let mut stream = connect(&app.url).await;
    for _ in 0..2 {
        let request = upload("sk_wrong", 3) + "abc";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        assert_eq!(status(&answer), 401);
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    drop(stream);
    app.finish().await;
}

/// With a key, far more is read before the answer, but not an unlimited amount.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_is_not_read_forever() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let head = format!(
        "GET /v1/balance HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        caller.key
    );
    let stream = sent(&app.url, &head).await;
    let (mut reading, mut writing) = stream.into_split();
    let sending = super::spawn(async move {
        let chunk = [&b"100000\r\n"[..], &vec![b'x'; 1 << 20], b"\r\n"].concat();
        let mut sent = 0;
        while writing.write_all(&chunk).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    let sent = sending.await.unwrap();
    assert!((64..200).contains(&sent), "{sent} MiB");
    app.finish().await;
}
