//! Requests that two parsers could read in two ways: all are refused, and nothing can be smuggled behind one.

use super::{exchange, sent, status, until_closed};
use crate::harness::{TestApp, caller::body_of};

/// The request that would be smuggled.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";

fn post(headers: &str, body: &str) -> String {
    format!("POST /v1/uploads/images HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let app = TestApp::start().await;
    for (what, request) in [
        (
            "two lengths",
            post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ),
        (
            "a list of lengths",
            post("Content-Length: 5, 6\r\n", "hello"),
        ),
        ("a signed length", post("Content-Length: +5\r\n", "hello")),
        ("a negative length", post("Content-Length: -5\r\n", "hello")),
        ("a length in hex", post("Content-Length: 0x5\r\n", "hello")),
        (
            "a length beyond all numbers",
            post("Content-Length: 99999999999999999999\r\n", "hello"),
        ),
        (
            "another encoding",
            post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ),
        (
            "an encoding after chunks",
            post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ),
        (
            "a space before the colon",
            post("Content-Length : 5\r\n", "hello"),
        ),
        (
            "a tab before the colon",
            post("Content-Length\t: 5\r\n", "hello"),
        ),
        (
            "a folded line",
            post("X-A: b\r\n Content-Length: 5\r\n", "hello"),
        ),
        (
            "a NUL in a header",
            post("X-A: b\0c\r\nContent-Length: 0\r\n", ""),
        ),
        (
            "a bare CR in a header",
            post("X-A: b\rContent-Length: 5\r\n", ""),
        ),
        ("a header without a name", post(": b\r\n", "")),
        (
            "a space in the path",
            "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        ),
        (
            "another version",
            "GET / HTTP/3.7\r\nHost: x\r\n\r\n".to_owned(),
        ),
    ] {
        let mut stream = sent(&app.url, &(request + HIDDEN)).await;
        let (answers, _) = until_closed(&mut stream).await;
        assert_eq!(status(&answers), 400, "{what}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{what}: {answers}");
    }
    app.finish().await;
}

/// As the standard requires: the chunks count, and the connection closes after the answer.
#[tokio::test]
async fn nothing_follows_a_request_with_a_length_and_chunks() {
    let app = TestApp::start().await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    for headers in [
        format!("Content-Length: 5\r\n{chunked}"),
        format!("{chunked}Content-Length: 5\r\n"),
    ] {
        let request = post(&headers, "0\r\n\r\n") + HIDDEN;
        let (answers, _) = until_closed(&mut sent(&app.url, &request).await).await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
        assert!(answers.contains("connection: close"), "{answers}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_broken_chunk_ends_the_connection() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let headers = format!(
        "Authorization: Bearer {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
        caller.key
    );
    let mut bodies = Vec::new();
    for chunk in [
        "z\r\nhello\r\n",
        "5hello\r\n",
        "-1\r\n\r\n",
        "5\r\nhelloXX",
        "ffffffffffffffff1\r\n",
    ] {
        let mut request = post(&headers, chunk) + HIDDEN;
        request = request.replace("/v1/uploads/images", "/v1/images/generations");
        let (answers, _) = until_closed(&mut sent(&app.url, &request).await).await;
        assert_eq!(
            answers.matches("HTTP/1.1 ").count(),
            1,
            "{chunk:?}: {answers}"
        );
        assert_eq!(status(&answers), 400, "{chunk:?}: {answers}");
        bodies.push(body_of(&answers).to_owned());
    }
    bodies.dedup();
    insta::assert_snapshot!(bodies.join("\n"), @r#"{"error":{"message":"the body could not be read to its end","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    app.finish().await;
}

#[tokio::test]
async fn a_request_has_one_host() {
    let app = TestApp::start().await;
    let ask = |version: &str, headers: &str| {
        let request = format!("GET /healthz {version}\r\n{headers}Connection: close\r\n\r\n");
        let url = app.url.clone();
        async move { exchange(&url, &request).await }
    };
    let mut bodies = Vec::new();
    for headers in ["", "Host: x\r\nHost: x\r\n", "Host: x\r\nhost: y\r\n"] {
        let answer = ask("HTTP/1.1", headers).await;
        assert_eq!(status(&answer), 400, "{headers:?} {answer}");
        bodies.push(body_of(&answer).to_owned());
    }
    bodies.dedup();
    insta::assert_snapshot!(bodies.join("\n"), @r#"{"error":{"message":"a request must have one Host header","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    assert_eq!(status(&ask("HTTP/1.1", "Host: x\r\n").await), 200);
    assert_eq!(status(&ask("HTTP/1.1", "Host:\r\n").await), 200);
    assert_eq!(status(&ask("HTTP/1.0", "").await), 200);
    assert_eq!(
        status(&ask("HTTP/1.0", "Host: x\r\nHost: y\r\n").await),
        400
    );
    app.finish().await;
}

#[tokio::test]
async fn heads_have_a_limit() {
    let app = TestApp::start().await;
    let many = "X-A: b\r\n".repeat(200);
    let large = format!("X-A: {}\r\n", "b".repeat(100_000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    for (request, refused) in [
        (
            format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
            431,
        ),
        (
            format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{large}\r\n"),
            431,
        ),
        (long, 414),
    ] {
        let answer = exchange(&app.url, &request).await;
        assert!([refused, 431].contains(&status(&answer)), "{answer}");
    }
    app.finish().await;
}
