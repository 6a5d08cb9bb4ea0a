//! An upstream or a store that fails at every step: what clients get, and that it costs nothing.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::{Value, json};

use super::{generated_by, left};
use crate::harness::{
    TestApp,
    caller::Caller,
    upstream::{KEY, Reply, Upstream, image},
};

/// What a client gets for one failure, in the answer to a sync request and, the same, in the task of an async one.
async fn failure(caller: &Caller, upstream: &Upstream, reply: &Reply) -> String {
    upstream.next(reply.clone());
    let answer = caller.generate("a bridge").await;
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{answer:?}");
    let error = answer.json()["error"].take();

    upstream.next(reply.clone());
    let id = super::accepted(caller, "a bridge").await;
    let task = caller.wait_for(&id).await;
    assert_eq!(task["status"], "failed", "{task}");
    assert_eq!(task["cost"], 0.0);
    assert_eq!(task["fail_reason"], error["message"]);
    let shown = json!({"type": error["type"], "code": error["code"], "message": error["message"]});
    assert_eq!(task["error"], shown);
    assert_eq!(task["data"], Value::Null);
    answer.refusal()
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
    let mut bodies = Vec::new();
    for reply in [
        Reply::error(400, "moderation_blocked", "No."),
        Reply::error(400, "invalid_value", "Too odd."),
        Reply::error(401, "invalid_api_key", &format!("Incorrect API key: {KEY}")),
        Reply::error(429, "rate_limit_exceeded", "Slow down."),
        Reply::error(500, "server_error", "At 10.0.0.7: oh."),
        Reply::bytes("text/html", b"<html>".to_vec()),
        Reply::json(200, &json!({"data": []})),
        Reply::json(200, &not_an_image),
        images(1).cut_in_half(),
    ] {
        bodies.push(failure(&caller, &upstream, &reply).await);
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"No.","type":"invalid_request_error","code":"moderation_blocked","param":null,"provider":"easel"}}
    400 {"error":{"message":"Too odd.","type":"invalid_request_error","code":"upstream_rejected","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream cannot be used at present","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream is overloaded at present","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream failed","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream answered without a usable image","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream answered without a usable image","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream answered without a usable image","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream failed","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    "#);
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
    let silent = failure(&caller, &upstream, &silence).await;

    let nobody = settings.replace(&upstream.url, "http://127.0.0.1:9");
    let alone = app.replica(&nobody).await;
    let caller = caller.at(&alone.url);
    let unreachable = failure(&caller, &upstream, &silence).await;

    assert_snapshot!([silent, unreachable].join("\n"), @r#"
    502 {"error":{"message":"the upstream failed","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    502 {"error":{"message":"the upstream could not be reached","type":"server_error","code":"upstream_error","param":null,"provider":"easel"}}
    "#);
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
