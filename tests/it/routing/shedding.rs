//! Overload: which requests are refused at once, with which answer, and that nothing is held for them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use insta::assert_json_snapshot;
use serde_json::json;

use super::{routed, submitted};
use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    upstream::{Reply, Upstream, closed_gate},
};

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").unwrap().parse().unwrap()
}

async fn ticket(caller: &Caller) -> Answer {
    let body = json!({"model": "gpt-image-2", "prompt": "one more"});
    caller.post("/v1/images/generations?async=1", &body).await
}

#[tokio::test]
async fn only_the_account_that_fills_its_queue_share_is_refused() {
    let upstream = Upstream::start().await;
    let gate = upstream.hold(1);
    let routes = r#"{ backend = "up", max_concurrency = 1 }"#;
    let more = "[tasks]\naccount_queued_max = 3\n";
    let app = TestApp::with(&routed(&[("up", &upstream)], routes, more)).await;
    let (crowd, one) = (app.caller("10").await, app.caller("10").await);
    let mut tasks = vec![submitted(&crowd, "running").await];
    upstream.wait_for(1).await;
    let refused = loop {
        assert!(tasks.len() < 10, "the queue has no limit");
        let answer = ticket(&crowd).await;
        if answer.status != 202 {
            break answer;
        }
        tasks.push(answer.json()["id"].as_str().unwrap().to_owned());
    };
    assert_json_snapshot!(refused.refused(429), @r#"
    {
      "error": {
        "code": "concurrency_limit",
        "message": "the account has 3 tasks in the queue already, as many as it may",
        "param": null,
        "provider": "easel",
        "type": "rate_limit_error"
      }
    }
    "#);
    assert_eq!(retry_after(&refused), 5);
    assert_eq!(refused.header("x-should-retry"), None);
    let other = submitted(&one, "of another account").await;
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(crowd.wait_for(&task).await["status"], "completed");
    }
    assert_eq!(one.wait_for(&other).await["status"], "completed");
    assert_eq!(ticket(&crowd).await.status, 202);
    app.finish().await;
}

#[tokio::test]
async fn sync_requests_have_a_share_per_account() {
    let upstream = Upstream::start().await;
    let gate = closed_gate();
    upstream.always(Some(Reply::an_image().held_by(&gate)));
    let more = "[server]\nsync_waiters_max = 3\n[tasks]\naccount_sync_waiters_max = 2\n";
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, more)).await;
    let [one, other] = [app.caller("10").await, app.caller("10").await];
    let mut waits = vec![one.waiting("first"), one.waiting("second")];
    upstream.wait_for(2).await;
    let refused = one.generate("third").await;
    assert_json_snapshot!(refused.refused(429), @r#"
    {
      "error": {
        "code": "concurrency_limit",
        "message": "the account has 2 requests waiting already, as many as it may",
        "param": null,
        "provider": "easel",
        "type": "rate_limit_error"
      }
    }
    "#);
    assert_eq!(retry_after(&refused), 5);
    // Async requests are not counted.
    let task = submitted(&one, "third").await;
    waits.push(other.waiting("first"));
    upstream.wait_for(4).await;
    let refused = other.generate("second").await;
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "too many requests are waiting for their images",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(refused.header("x-should-retry"), None);
    assert_eq!(one.get("/healthz").await.status, 200);

    gate.add_permits(4);
    for wait in waits {
        assert_eq!(wait.await.unwrap().status, 200);
    }
    assert_eq!(one.wait_for(&task).await["status"], "completed");
    upstream.always(None);
    assert_eq!(
        one.generate("third").await.status,
        200,
        "the others are gone"
    );
    app.finish().await;
}

/// A gateway that has learned that its upstream takes a quarter of a second, and the account with which it did.
async fn slow(routes: &str, more: &str) -> (Upstream, TestApp, Caller) {
    let upstream = Upstream::start().await;
    let slow = Reply::an_image().after(Duration::from_millis(250));
    upstream.always(Some(slow));
    let app = TestApp::with(&routed(&[("up", &upstream)], routes, more)).await;
    let crowd = app.caller("1000").await;
    assert_eq!(crowd.generate("takes a while").await.status, 200);
    (upstream, app, crowd)
}

#[tokio::test]
async fn a_burst_is_answered_in_time_whether_served_or_refused() {
    let more = "[tasks]\nrunning_max = 4\nsync_wait_max_ms = 2000\n";
    let (upstream, app, crowd) = slow(r#""up""#, more).await;
    let began = Instant::now();
    let answers = join_all((0..200).map(|index| {
        let crowd = crowd.clone();
        async move { crowd.generate(&format!("image {index}")).await }
    }))
    .await;
    // Two seconds of work were admitted, plus the error of the estimate.
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    let (served, shed): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(served.len() >= 20, "{} were served", served.len());
    assert!(shed.len() >= 100, "{} were refused", shed.len());
    for answer in shed {
        answer.assert_refused(
            503,
            "the queue is too long for the images to be ready in time",
        );
        assert!((1..=60).contains(&retry_after(answer)));
    }
    assert_eq!(upstream.calls().len(), served.len() + 1);
    app.finish().await;
}

#[tokio::test]
async fn a_burst_of_one_account_gets_no_other_refused() {
    let routes = r#"{ backend = "up", max_concurrency = 2 }"#;
    let (_upstream, app, crowd) = slow(routes, "[tasks]\nsync_wait_max_ms = 2000\n").await;
    let one = app.caller("10").await;
    let mut tasks = Vec::new();
    for index in 0..40 {
        tasks.push(submitted(&crowd, &format!("image {index}")).await);
    }
    let refused = crowd.generate("one too many").await;
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the queue is too long for the images to be ready in time",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(one.generate("in turn").await.status, 200);
    for task in tasks {
        assert_eq!(crowd.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn without_a_probe_in_time_a_request_is_refused_at_once_and_nothing_held() {
    let upstream = Upstream::start().await;
    let more = "[routing]\nopen_ms = 20000\nsync_wait_ms = 1000\n";
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, more)).await;
    let caller = app.caller("0.2").await;
    upstream.next(Reply::error(401, "invalid_api_key", "Who?"));
    let found_out = caller.generate("a bridge").await;
    found_out.assert_refused(502, "the upstream cannot be used at present");
    let began = Instant::now();
    let refused = caller.generate("a bridge").await;
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "no upstream of this model can be used at present",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!((15..=20).contains(&retry_after(&refused)), "{refused:?}");
    assert_eq!(refused.header("x-should-retry"), None);
    assert_eq!(caller.balance().await["held"], 0.0);
    // An async request is accepted and queued.
    let task = submitted(&caller, "a bridge").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let pending = caller.get(&format!("/v1/images/tasks/{task}")).await.json();
    assert_eq!(pending["status"], "pending");
    assert_eq!(upstream.calls().len(), 1);
    // Postpones the next probe.
    let mut conn = app.database.connect().await;
    sqlx::query("UPDATE open_tasks SET deadline_at = now() WHERE status = 'queued'")
        .execute(&mut conn)
        .await
        .unwrap();
    drop(conn);
    assert_eq!(
        caller.wait_for(&task).await["error"]["code"],
        "deadline_exceeded"
    );
    app.finish().await;
}
