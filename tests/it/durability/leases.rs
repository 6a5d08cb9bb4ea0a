//! Leases that run out, deadlines that pass, clients that hang up.

use easel::tasks::{Ending, Outcome};
use serde_json::json;

use super::{accepted, generated_by, left, submit};
use crate::harness::{
    TestApp,
    database::{TestDatabase, task_rows},
    process::Setup,
    upstream::Upstream,
};

const RUNNING: &str = "SELECT count(*) FROM tasks WHERE status = 'running'";
const COMPLETED: &str = "SELECT count(*) FROM tasks WHERE status = 'completed'";

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_changes_nothing_when_it_resumes() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000");
    let paused = Setup::on(&database, &settings).serve();
    let caller = database.caller(&paused.url(), "1").await;
    let gate = upstream.hold(1);
    let id = accepted(&caller, "a bridge").await;
    upstream.wait_for(1).await;

    paused.signal("STOP");
    let other = Setup::on(&database, &settings).serve();
    let here = caller.at(&other.url());
    let task = here.wait_for(&id).await;
    // The answer has arrived before it resumes.
    gate.add_permits(1);
    paused.signal("CONT");
    paused.end();

    assert_eq!(task["status"], "completed");
    assert_eq!(here.wait_for(&id).await, task);
    assert_eq!(left(&here).await, 0.8);
    let captures = "SELECT count(*) FROM entries WHERE kind = 'capture'";
    assert_eq!(database.number(captures).await, 1);
    let attempts = "SELECT attempts::bigint FROM tasks";
    assert_eq!(database.number(attempts).await, 2);
    other.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn a_result_under_an_old_fence_changes_nothing() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&generated_by(&upstream, "")).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let id = accepted(&caller, "a bridge").await;
    upstream.wait_for(1).await;
    // Another worker claims it, and does not end it yet.
    let mut conn = app.database.connect().await;
    let claim = sqlx::query("UPDATE open_tasks SET fence = fence + 1, attempts = attempts + 1");
    claim.execute(&mut conn).await.unwrap();

    gate.add_permits(1);
    app.database
        .wait_for("SELECT count(*) FROM tasks WHERE status <> 'running'", 0)
        .await;
    let settled = app.app.settler.call(easel::images::settle::Finished {
        task: {
            let ids = [id.parse().unwrap()];
            let task = task_rows(&mut conn, &ids).await.remove(0);
            let fence = task.fence - 1;
            easel::tasks::Task { fence, ..task }.into()
        },
        ending: Ending::of(Outcome::Completed(Vec::new())).into(),
    });

    assert!(settled.await.unwrap().is_none());
    assert_eq!(app.database.number(RUNNING).await, 1);
    assert_eq!(caller.balance().await["held"], 0.2);
    // The lease of the worker that claimed it runs out.
    let lost = sqlx::query("UPDATE open_tasks SET status = 'queued', lease_until = NULL");
    lost.execute(&mut conn).await.unwrap();
    assert_eq!(caller.wait_for(&id).await["status"], "completed");
    assert_eq!(left(&caller).await, 0.8);
    app.finish().await;
}

#[tokio::test]
async fn a_deadline_fails_a_running_task_and_releases_its_hold() {
    let upstream = Upstream::start().await;
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000\ndeadline_ms = 1500");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    upstream.hold(1);

    let answer = caller.generate("never").await;

    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    insta::assert_json_snapshot!(answer.json(), @r#"
    {
      "error": {
        "code": "deadline_exceeded",
        "message": "the task ran past its deadline",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(left(&caller).await, 1.0);
    app.finish().await;
}

#[tokio::test]
async fn a_deadline_ends_a_task_that_never_started() {
    let upstream = Upstream::start().await;
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000\nrunning_max = 1");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let first = accepted(&caller, "first").await;
    upstream.wait_for(1).await;
    let second = accepted(&caller, "second").await;
    let mut conn = app.database.connect().await;
    let late = sqlx::query("UPDATE open_tasks SET deadline_at = now() WHERE status = 'queued'");
    assert_eq!(late.execute(&mut conn).await.unwrap().rows_affected(), 1);

    let task = caller.wait_for(&second).await;

    assert_eq!(task["error"]["code"], "deadline_exceeded");
    assert_eq!(task["cost"], 0.0);
    gate.add_permits(1);
    assert_eq!(caller.wait_for(&first).await["status"], "completed");
    assert_eq!(upstream.calls().len(), 1);
    assert_eq!(left(&caller).await, 0.8);
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_loses_only_its_wait() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&generated_by(&upstream, "")).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let request = caller.waiting("a bridge");
    upstream.wait_for(1).await;

    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    gate.add_permits(1);

    app.database.wait_for(COMPLETED, 1).await;
    let tasks = caller.get("/v1/images/tasks").await.json();
    let task = &tasks["data"][0];
    assert_eq!(
        (&task["status"], &task["cost"]),
        (&"completed".into(), &0.2.into())
    );
    assert_eq!(caller.get(task["url"].as_str().unwrap()).await.status, 302);
    assert_eq!(left(&caller).await, 0.8);
    app.finish().await;
}

#[tokio::test]
async fn a_full_queue_accepts_no_more() {
    let upstream = Upstream::start().await;
    let settings = generated_by(&upstream, "[tasks]\nrunning_max = 1\nqueued_max = 1");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let first = accepted(&caller, "first").await;
    upstream.wait_for(1).await;
    while app.app.admission.backlog.total() > 0 {
        tokio::task::yield_now().await;
    }
    let second = accepted(&caller, "second").await;

    let refused = submit(&caller, "third").await;

    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("10"));
    insta::assert_json_snapshot!(refused.json(), @r#"
    {
      "error": {
        "code": null,
        "message": "the queue is full",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    gate.add_permits(1);
    for id in [first, second] {
        assert_eq!(caller.wait_for(&id).await["status"], "completed");
    }
    assert_eq!(left(&caller).await, json!(0.6));
    app.finish().await;
}
