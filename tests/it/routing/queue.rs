//! The queue: what a route may do at once, over all replicas, and whose turn it is.

use std::time::Duration;

use tokio::sync::Semaphore;

use super::{routed, submitted};
use crate::harness::{
    TestApp,
    upstream::{Gate, Reply, Upstream},
};

fn hold(upstream: &Upstream, gate: &Gate, times: usize) {
    for _ in 0..times {
        upstream.next(Reply::a_picture().held_by(gate));
    }
}

#[tokio::test]
async fn a_route_never_draws_more_at_once_than_it_may_whoever_asks() {
    let upstream = Upstream::start().await;
    let gate = Gate::new(Semaphore::new(0));
    hold(&upstream, &gate, 8);
    let routes = r#"{ backend = "up", max_concurrency = 3 }"#;
    let settings = routed(&[("up", &upstream)], routes, "");
    let app = TestApp::with(&settings).await;
    let other = app.replica(&settings).await;
    let caller = app.caller("2").await;
    let there = caller.at(&other.url);
    let mut tasks = Vec::new();
    for index in 0..4 {
        tasks.push(submitted(&caller, &format!("here {index}")).await);
        tasks.push(submitted(&there, &format!("there {index}")).await);
    }
    upstream.wait_for(3).await;
    // Long enough for either to look at the queue again, and again.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(upstream.received().len(), 3);

    gate.add_permits(1);
    upstream.wait_for(4).await;
    gate.add_permits(7);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    assert_eq!(upstream.received().len(), 8);
    other.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn where_one_route_is_full_the_next_priority_draws() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let gate = Gate::new(Semaphore::new(0));
    hold(&first, &gate, 1);
    let routes =
        r#"{ backend = "first", max_concurrency = 1 }, { backend = "second", priority = 1 }"#;
    let settings = routed(&[("first", &first), ("second", &second)], routes, "");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("2").await;
    let held = submitted(&caller, "first").await;
    first.wait_for(1).await;
    assert_eq!(caller.draw("second").await.status, 200);
    assert_eq!(second.received().len(), 1);
    gate.add_permits(1);
    assert_eq!(caller.wait_for(&held).await["status"], "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_crowd_of_one_account_does_not_keep_another_waiting() {
    let upstream = Upstream::start().await;
    let gate = Gate::new(Semaphore::new(0));
    hold(&upstream, &gate, 1);
    let routes = r#"{ backend = "up", max_concurrency = 1 }"#;
    let app = TestApp::with(&routed(&[("up", &upstream)], routes, "")).await;
    let (crowd, one) = (app.caller("100").await, app.caller("1").await);
    let mut tasks = Vec::new();
    for index in 0..30 {
        tasks.push((
            crowd.clone(),
            submitted(&crowd, &format!("crowd {index}")).await,
        ));
    }
    upstream.wait_for(1).await;
    tasks.push((one.clone(), submitted(&one, "alone").await));
    gate.add_permits(1);
    for (caller, task) in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    let drawn: Vec<String> = upstream
        .received()
        .iter()
        .map(|call| call.fields["prompt"].as_str().unwrap().to_owned())
        .collect();
    let turn = drawn.iter().position(|prompt| prompt == "alone").unwrap();
    // One was being drawn already; another may have been claimed as that one ended.
    assert!(turn <= 2, "{drawn:?}");
    let crowd: Vec<_> = drawn.iter().filter(|prompt| *prompt != "alone").collect();
    let in_order: Vec<String> = (0..30).map(|index| format!("crowd {index}")).collect();
    assert!(crowd.into_iter().eq(&in_order), "{drawn:?}");
    app.finish().await;
}

#[tokio::test]
async fn what_waits_to_be_tried_again_holds_no_place() {
    let upstream = Upstream::start().await;
    let settings = routed(
        &[("up", &upstream)],
        r#"{ backend = "up", max_concurrency = 1 }"#,
        "[routing]\nretry_wait_ms = 60000\nretry_wait_max_ms = 60000\n",
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let busy = Reply::error(429, "rate_limit_exceeded", "Slow down.");
    upstream.next(busy.header("retry-after", "60"));
    let failed = submitted(&caller, "first").await;
    upstream.wait_for(1).await;
    assert_eq!(caller.draw("second").await.status, 200);
    assert_eq!(
        caller
            .get(&format!("/v1/images/tasks/{failed}"))
            .await
            .json()["status"],
        "pending"
    );
    let mut conn = app.database.connect().await;
    sqlx::query("UPDATE tasks SET run_at = now() WHERE status = 'queued'")
        .execute(&mut conn)
        .await
        .unwrap();
    assert_eq!(caller.wait_for(&failed).await["status"], "completed");
    drop(conn);
    app.finish().await;
}

#[tokio::test]
async fn what_waits_for_a_route_counts_for_the_length_of_the_queue() {
    let upstream = Upstream::start().await;
    let gate = Gate::new(Semaphore::new(0));
    hold(&upstream, &gate, 1);
    let routes = r#"{ backend = "up", max_concurrency = 1 }"#;
    let settings = routed(&[("up", &upstream)], routes, "[tasks]\nqueued_max = 3\n");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("2").await;
    let mut tasks = vec![submitted(&caller, "running").await];
    upstream.wait_for(1).await;
    // The queue is counted when it is looked at, and by what came since.
    let body = serde_json::json!({"model": "gpt-image-2", "prompt": "waiting"});
    let full = loop {
        assert!(tasks.len() < 10, "the queue takes any number");
        let answer = caller.post("/v1/images/generations?async=1", &body).await;
        match answer.status {
            202 => tasks.push(answer.json()["task_id"].as_str().unwrap().to_owned()),
            _ => break answer,
        }
        // Whether it was looked at meanwhile, or not.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    full.assert_refused(503, "the queue is full");
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}
