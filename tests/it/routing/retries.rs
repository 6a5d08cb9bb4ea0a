//! What one failure leads to: another route, the same route again, or the end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{attempts, routed, tried};
use crate::harness::{
    TestApp,
    upstream::{Reply, Upstream},
};

const QUICK: &str = "[routing]\nretry_wait_ms = 10\n";

#[tokio::test]
async fn the_next_route_generates_after_the_first_failed() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let routes = r#""first", { backend = "second", upstream_model = "other", priority = 1 }"#;
    let settings = routed(&[("first", &first), ("second", &second)], routes, "");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    first.next(Reply::error(500, "server_error", "broken"));

    let answer = caller.generate("a bridge").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(second.calls()[0].fields["model"], "other");
    let kept = tried(&[("first", Some("failed")), ("second/other", None)]);
    assert_eq!(attempts(&app.database).await, kept);
    assert_eq!(caller.balance().await["balance"], 0.8);
    let mut conn = app.database.connect().await;
    let usage: serde_json::Value = sqlx::query_scalar("SELECT usage FROM tasks")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(usage[0]["total_tokens"], 280, "{usage}");
    app.finish().await;
}

#[tokio::test]
async fn a_lone_route_is_tried_again_after_the_wait_it_asks_for() {
    let upstream = Upstream::start().await;
    let settings = routed(&[("up", &upstream)], r#""up""#, QUICK);
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let busy = Reply::error(429, "rate_limit_exceeded", "Slow down.");
    upstream.next(busy.header("retry-after-ms", "700"));
    upstream.next(Reply::error(503, "server_error", "restarting"));

    let began = Instant::now();
    let answer = caller.generate("a bridge").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(began.elapsed() > Duration::from_millis(700));
    let kept = tried(&[
        ("up", Some("rate_limited")),
        ("up", Some("failed")),
        ("up", None),
    ]);
    assert_eq!(attempts(&app.database).await, kept);
    assert_eq!(caller.balance().await["balance"], 0.8);
    app.finish().await;
}

#[tokio::test]
async fn possibly_paid_and_permanent_failures_are_not_retried() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let settings = routed(
        &[("first", &first), ("second", &second)],
        r#"{ backend = "first", timeout_ms = 200 }, { backend = "second", priority = 1 }"#,
        QUICK,
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let whole = Reply::an_image();
    for (reply, status) in [
        (whole.clone().cut_in_half(), 502),
        (whole.clone().after(Duration::from_hours(1)), 502),
        (Reply::error(400, "moderation_blocked", "No."), 400),
        (Reply::error(400, "invalid_value", "Too odd."), 400),
    ] {
        first.next(reply);
        assert_eq!(caller.generate("a bridge").await.status, status);
    }
    assert!(second.calls().is_empty());
    assert_eq!(caller.balance().await["balance"], 1.0);
    app.finish().await;
}

#[tokio::test]
async fn an_answer_without_an_image_is_retried_once() {
    let upstream = Upstream::start().await;
    let settings = routed(&[("up", &upstream)], r#""up""#, QUICK);
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let nothing = || Reply::json(200, &json!({"data": []}));
    upstream.next(nothing());
    assert_eq!(caller.generate("a bridge").await.status, 200);
    upstream.next(nothing());
    upstream.next(nothing());
    let answer = caller.generate("a bridge").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(upstream.calls().len(), 4);
    assert_eq!(caller.balance().await["balance"], 0.8);
    app.finish().await;
}

#[tokio::test]
async fn a_backend_without_a_valid_key_opens_its_circuit_and_reports_it() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let routes = r#""first", { backend = "second", priority = 1 }"#;
    let settings = routed(&[("first", &first), ("second", &second)], routes, "");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    first.next(Reply::error(401, "invalid_api_key", "Who?"));
    for _ in 0..3 {
        assert_eq!(caller.generate("a bridge").await.status, 200);
    }
    assert_eq!(first.calls().len(), 1, "its circuit is open");
    assert_eq!(second.calls().len(), 3);
    let ready = caller.get("/readyz?verbose").await;
    let backends = json!({"first": "open", "second": "closed"});
    assert_eq!(
        ready.json(),
        json!({"status": "ok", "storage": "ok", "backends": backends})
    );
    app.finish().await;
}
