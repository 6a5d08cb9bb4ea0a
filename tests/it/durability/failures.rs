//! An upstream or a store that fails at every step: what clients get, and that it costs nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::{generated_by, left};
use crate::harness::{
    TestApp,
    caller::Caller,
    upstream::{KEY, Reply, Upstream, image},
};

/// What a client gets for one failure: status, type, code and message.
type Expected = (u16, &'static str, &'static str, &'static str);

/// Both ways: as the answer to a sync request, and in the task object of an async one.
async fn assert_failure(caller: &Caller, upstream: &Upstream, reply: &Reply, expected: Expected) {
    let (status, kind, code, message) = expected;
    upstream.next(reply.clone());
    let answer = caller.generate("a bridge").await;
    assert_eq!(answer.status, status, "{expected:?}: {answer:?}");
    assert_eq!(
        answer.header("x-should-retry"),
        Some("false"),
        "{expected:?}"
    );
    let body = json!({"error": {"message": message, "type": kind, "code": code, "param": null, "provider": "easel"}});
    assert_eq!(answer.json(), body, "{expected:?}");

    upstream.next(reply.clone());
    let id = super::accepted(caller, "a bridge").await;
    let task = caller.wait_for(&id).await;
    assert_eq!(task["status"], "failed", "{expected:?}");
    assert_eq!(task["cost"], 0.0);
    assert_eq!(task["fail_reason"], message);
    assert_eq!(
        task["error"],
        json!({"type": kind, "code": code, "message": message})
    );
    assert_eq!(task["data"], Value::Null);
}

fn images(count: usize) -> Reply {
    Reply::images(&vec![image(3, 2, 0); count])
}

#[tokio::test]
async fn every_upstream_failure_is_distinguished_and_costs_nothing() {
    let upstream = Upstream::start().await;
    // One attempt only, and the circuit closes at once: retries have their own tests.
    let settings = "[tasks]\nattempts_max = 1\n[routing]\nopen_ms = 1\n";
    let app = TestApp::with(&generated_by(&upstream, settings)).await;
    let caller = app.caller("1").await;
    let not_an_image =
        json!({"created": 1, "data": [{"b64_json": "aGVsbG8gd29ybGQsIG5vIHBpY3R1cmU="}]});
    let result = images(1);
    let server_error = |code, message| (502, "server_error", code, message);
    let upstream_error = |message| server_error("upstream_error", message);
    let invalid_request = |code, message| (400, "invalid_request_error", code, message);
    let cases = [
        (
            Reply::error(400, "moderation_blocked", "No."),
            invalid_request("moderation_blocked", "No."),
        ),
        (
            Reply::error(400, "invalid_value", "Too odd."),
            invalid_request("upstream_rejected", "Too odd."),
        ),
        (
            Reply::error(401, "invalid_api_key", &format!("Incorrect API key: {KEY}")),
            upstream_error("the upstream cannot be used at present"),
        ),
        (
            Reply::error(429, "rate_limit_exceeded", "Slow down."),
            upstream_error("the upstream is overloaded at present"),
        ),
        (
            Reply::error(500, "server_error", "At 10.0.0.7: oh."),
            upstream_error("the upstream failed"),
        ),
        (
            Reply::bytes("text/html", b"<html>".to_vec()),
            upstream_error("the upstream answered without a usable image"),
        ),
        (
            Reply::json(200, &json!({"data": []})),
            upstream_error("the upstream answered without a usable image"),
        ),
        (
            Reply::json(200, &not_an_image),
            upstream_error("the upstream answered without a usable image"),
        ),
        (
            result.clone().cut_in_half(),
            upstream_error("the upstream failed"),
        ),
    ];
    for (reply, expected) in cases {
        assert_failure(&caller, &upstream, &reply, expected).await;
    }
    assert_eq!(left(&caller).await, 1.0);
    app.finish().await;
}

#[tokio::test]
async fn a_silent_or_unreachable_upstream_fails_in_time() {
    let upstream = Upstream::start().await;
    let settings = generated_by(&upstream, "[tasks]\nattempts_max = 1\n")
        .replace("[\"up\"]", "[{ backend = \"up\", timeout_ms = 300 }]");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let silence = images(1).after(Duration::from_hours(1));
    let failed = (502, "server_error", "upstream_error", "the upstream failed");
    assert_failure(&caller, &upstream, &silence, failed).await;

    let nobody = settings.replace(&upstream.url, "http://127.0.0.1:9");
    let alone = app.replica(&nobody).await;
    let caller = caller.at(&alone.url);
    let away = (
        502,
        "server_error",
        "upstream_error",
        "the upstream could not be reached",
    );
    assert_failure(&caller, &upstream, &silence, away).await;

    assert_eq!(left(&caller).await, 1.0);
    alone.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn only_delivered_images_are_charged() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&generated_by(&upstream, "")).await;
    let caller = app.caller("2").await;
    let body = json!({"model": "gpt-image-2", "prompt": "four", "n": 4});

    upstream.next(images(3));
    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 3);
    assert_eq!(left(&caller).await, 1.4);
    let had = upstream.calls().remove(0);
    assert_eq!(had.path, "/v1/images/generations");
    assert_eq!(had.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(
        (&had.fields["prompt"], &had.fields["n"]),
        (&"four".into(), &4.into())
    );

    // More images than requested are dropped.
    upstream.next(images(6));
    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 4);
    assert_eq!(left(&caller).await, 0.6);

    // The first two are complete, then the connection breaks.
    let three = images(3);
    upstream.next(three.clone().cut_at(three.length() - 250));
    let body = json!({"model": "gpt-image-2", "prompt": "three", "n": 3});
    let ticket = caller
        .post("/v1/images/generations?async=1", &body)
        .await
        .json();
    let task = caller.wait_for(ticket["id"].as_str().unwrap()).await;
    assert_eq!(
        (&task["status"], &task["cost"]),
        (&"completed".into(), &0.4.into())
    );
    assert_eq!(left(&caller).await, 0.2);
    app.finish().await;
}
