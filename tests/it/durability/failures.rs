//! An upstream, or storage, that fails at every step: what clients are told, and that it costs nothing.

use serde_json::{Value, json};

use super::left;
use crate::harness::{
    TestApp,
    caller::Caller,
    upstream::{Act, Upstream, pictures},
};

/// What a client hears of one failure: status, type, code and message.
type Told = (u16, &'static str, &'static str, &'static str);

fn error(message: &str, code: &str) -> String {
    json!({"error": {"message": message, "type": "t", "code": code, "param": null}}).to_string()
}

/// Both ways: as the answer of a sync request, and in the task object of an async one.
async fn assert_told(caller: &Caller, upstream: &Upstream, act: &Act, told: Told) {
    let (status, kind, code, message) = told;
    upstream.then(act.clone());
    let answer = caller.draw("a bridge").await;
    assert_eq!(answer.status, status, "{act:?}: {answer:?}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{act:?}");
    let body = json!({"error": {"message": message, "type": kind, "code": code, "param": null, "provider": "easel"}});
    assert_eq!(answer.json(), body, "{act:?}");

    upstream.then(act.clone());
    let id = super::accepted(caller, "a bridge").await;
    let task = caller.wait_for(&id).await;
    assert_eq!(task["status"], "failed", "{act:?}");
    assert_eq!(task["cost"], 0.0);
    assert_eq!(task["fail_reason"], message);
    assert_eq!(
        task["error"],
        json!({"type": kind, "code": code, "message": message})
    );
    assert_eq!(task["data"], Value::Null);
}

#[tokio::test]
async fn every_failure_of_the_upstream_is_told_apart_and_costs_nothing() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.settings("")).await;
    let caller = app.caller("1").await;
    let not_an_image =
        json!({"created": 1, "data": [{"b64_json": "aGVsbG8gd29ybGQsIG5vIHBpY3R1cmU="}]});
    let server_error = |code, message| (502, "server_error", code, message);
    let upstream_error = |message| server_error("upstream_error", message);
    let invalid_request = |code, message| (400, "invalid_request_error", code, message);
    let cases = [
        (
            Act::Answer(400, error("No.", "moderation_blocked")),
            invalid_request("moderation_blocked", "No."),
        ),
        (
            Act::Answer(400, error("Too odd.", "invalid_value")),
            invalid_request("upstream_rejected", "Too odd."),
        ),
        (
            Act::Answer(
                401,
                error("Incorrect API key: sk-upstream", "invalid_api_key"),
            ),
            upstream_error("the upstream cannot be used at present"),
        ),
        (
            Act::Answer(429, error("Slow down.", "rate_limit_exceeded")),
            upstream_error("the upstream is overloaded at present"),
        ),
        (
            Act::Answer(500, error("At 10.0.0.7: oh.", "server_error")),
            upstream_error("the upstream failed"),
        ),
        (
            Act::Answer(200, "<html>".to_owned()),
            upstream_error("the upstream answered without a usable image"),
        ),
        (
            Act::Answer(200, json!({"data": []}).to_string()),
            upstream_error("the upstream answered without a usable image"),
        ),
        (
            Act::Answer(200, not_an_image.to_string()),
            upstream_error("the upstream answered without a usable image"),
        ),
        (Act::CutOff, upstream_error("the upstream failed")),
    ];
    for (act, told) in cases {
        assert_told(&caller, &upstream, &act, told).await;
    }
    assert_eq!(left(&caller).await, 1.0);
    app.finish().await;
}

#[tokio::test]
async fn an_upstream_that_is_silent_or_away_fails_in_time() {
    let upstream = Upstream::start().await;
    let settings = upstream.settings("").replace("20000", "300");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let failed = (502, "server_error", "upstream_error", "the upstream failed");
    assert_told(&caller, &upstream, &Act::Silence, failed).await;

    let nobody = settings.replace(&upstream.base_url, "http://127.0.0.1:9/v1");
    let alone = app.replica(&nobody).await;
    let caller = caller.at(&alone.url);
    let away = (
        502,
        "server_error",
        "upstream_error",
        "the upstream could not be reached",
    );
    assert_told(&caller, &upstream, &Act::Silence, away).await;

    assert_eq!(left(&caller).await, 1.0);
    alone.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn what_is_delivered_is_charged_and_no_more() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.settings("")).await;
    let caller = app.caller("2").await;
    let body = json!({"model": "gpt-image-2", "prompt": "four", "n": 4});

    upstream.then(Act::Pictures(3));
    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 3);
    assert_eq!(left(&caller).await, 1.4);
    let had = upstream.had().remove(0);
    assert_eq!(had.path, "/v1/images/generations");
    assert_eq!(had.headers["authorization"], "Bearer sk-upstream");
    let asked: Value = serde_json::from_slice(&had.body).unwrap();
    assert_eq!((&asked["prompt"], &asked["n"]), (&"four".into(), &4.into()));

    // More than was asked for is nobody's.
    upstream.then(Act::Pictures(6));
    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 4);
    assert_eq!(left(&caller).await, 0.6);

    // The first two are whole, then it breaks off.
    let text = pictures(3).to_string();
    upstream.then(Act::Answer(200, text[..text.len() - 20].to_owned()));
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

#[tokio::test]
async fn pictures_that_cannot_be_stored_cost_nothing() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.settings("")).await;
    let caller = app.caller("1").await;
    assert_eq!(caller.draw("before").await.status, 200);
    let objects = app.app.config.data_dir.join("objects");
    let away = app.app.config.data_dir.join("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "in the way").unwrap();

    let told = (
        500,
        "server_error",
        "internal_error",
        "the image could not be stored",
    );
    assert_told(&caller, &upstream, &Act::Pictures(1), told).await;
    assert_eq!(caller.get("/readyz").await.status, 503);
    assert_eq!(left(&caller).await, 0.8);

    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    assert_eq!(caller.draw("after").await.status, 200);
    assert_eq!(caller.get("/readyz").await.status, 200);
    assert_eq!(left(&caller).await, 0.6);
    app.finish().await;
}
