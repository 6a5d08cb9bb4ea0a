//! SIGTERM: requests under way are answered, and what takes too long is requeued.

use std::time::{Duration, Instant};

use super::{accepted, generated_by, left, submit};
use crate::harness::{database::TestDatabase, process::Setup, upstream::Upstream};

#[tokio::test(flavor = "multi_thread")]
async fn running_requests_are_answered_and_new_ones_left_to_other_gateways() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    // It takes longer than a lease, after which another replica would claim it.
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000");
    let gateway = Setup::on(&database, &settings).serve();
    let other = Setup::on(&database, &settings).serve();
    let caller = database.caller(&gateway.url(), "1").await;
    let gate = upstream.hold(2);
    let request = caller.waiting("waits");
    let id = accepted(&caller, "does not wait").await;
    upstream.wait_for(2).await;

    gateway.signal("TERM");
    while caller.get("/readyz").await.status == 200 {}

    let not_ready = caller.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    let refused = caller.generate("too late").await;
    insta::assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the gateway is shutting down",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(not_ready.json(), refused.json());
    assert_eq!(refused.header("retry-after"), Some("1"));
    // Behind a connection-level load balancer, the next request must reach another gateway.
    assert_eq!(refused.header("connection"), Some("close"));
    let late = submit(&caller, "late").await;
    assert_eq!(late.status, 202, "{late:?}");
    let late = late.json()["task_id"].as_str().unwrap().to_owned();
    assert_eq!(caller.get("/healthz").await.status, 200);
    let polled = caller.get(&format!("/v1/images/tasks/{id}")).await;
    assert_eq!(polled.json()["status"], "pending");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    gate.add_permits(2);
    assert_eq!(request.await.unwrap().status, 200);
    assert!(gateway.wait_end().success());

    assert_eq!(
        database
            .number("SELECT max(attempts)::bigint FROM tasks")
            .await,
        1
    );
    let caller = caller.at(&other.url());
    assert_eq!(caller.wait_for(&id).await["status"], "completed");
    assert_eq!(caller.wait_for(&late).await["status"], "completed");
    assert_eq!(left(&caller).await, 0.4);
    other.end();
    database.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_waiting_for_another_replica_are_answered_during_a_shutdown() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let gateway = Setup::on(
        &database,
        &generated_by(&upstream, "[tasks]\nrunning_max = 1"),
    )
    .serve();
    let caller = database.caller(&gateway.url(), "1").await;
    let gate = upstream.hold(2);
    let first = caller.waiting("generated here");
    upstream.wait_for(1).await;
    let second = caller.waiting("generated elsewhere");
    database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'queued'", 1)
        .await;
    let other = Setup::on(&database, &generated_by(&upstream, "")).serve();
    upstream.wait_for(2).await;

    gateway.signal("TERM");
    while caller.get("/readyz").await.status == 200 {}
    gate.add_permits(2);

    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    assert!(gateway.wait_end().success());
    other.end();
    database.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_take_too_long_are_requeued_unstarted() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let settings = generated_by(&upstream, "[server]\ndrain_timeout_ms = 300");
    let setup = Setup::on(&database, &settings);
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "1").await;
    upstream.hold(2);
    let request = caller.waiting("waits");
    let id = accepted(&caller, "does not wait").await;
    upstream.wait_for(2).await;

    gateway.end();

    let refused = request.await.unwrap();
    insta::assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the gateway is shutting down",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    let unbegun = "SELECT count(*) FROM tasks WHERE status = 'queued' AND attempts = 0";
    assert_eq!(database.number(unbegun).await, 2);
    let gateway = setup.serve();
    let caller = caller.at(&gateway.url());
    assert_eq!(caller.wait_for(&id).await["status"], "completed");
    database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'completed'", 2)
        .await;
    assert_eq!(left(&caller).await, 0.6);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let gateway = Setup::on(&database, &generated_by(&upstream, "")).serve();
    let caller = database.caller(&gateway.url(), "1").await;
    upstream.hold(1);
    accepted(&caller, "under way").await;
    upstream.wait_for(1).await;

    gateway.signal("TERM");
    while caller.get("/readyz").await.status == 200 {}
    let began = Instant::now();
    gateway.signal("INT");
    gateway.wait_end();

    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert!(gateway.stderr().contains("exiting at once"));
    // It is requeued when its lease runs out.
    let running = "SELECT count(*) FROM tasks WHERE status = 'running'";
    assert_eq!(database.number(running).await, 1);
}
