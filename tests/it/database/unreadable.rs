//! A task that cannot be read, as another version may have written it: it stops no other, and ends.

use serde_json::json;

use crate::harness::{
    TestApp,
    caller::Caller,
    upstream::{Gate, Upstream},
};

/// A gateway that runs one task at a time, with three tasks: one that runs until the gate opens, one that was changed
/// while it was queued, and one behind that.
struct Queue {
    app: TestApp,
    caller: Caller,
    gate: Gate,
    running: String,
    changed: String,
    behind: String,
    _upstream: Upstream,
}

impl Queue {
    /// `settings` continue the section `[tasks]`; `change` is what the UPDATE sets.
    async fn with(settings: &str, change: &str) -> Self {
        let upstream = Upstream::start().await;
        let backend = upstream.gateway("");
        let app = TestApp::with(&format!("[tasks]\nrunning_max = 1\n{settings}{backend}")).await;
        let caller = app.caller("1").await;
        let gate = upstream.hold(1);
        let submit = async |prompt: &str| {
            let body = json!({"model": "gpt-image-2", "prompt": prompt});
            caller.submit(&body).await
        };
        let running = submit("a bridge").await;
        upstream.wait_for(1).await;
        let changed = submit("a bridge of another version").await;
        let behind = submit("a bridge behind it").await;
        let change =
            format!("UPDATE open_tasks SET {change} WHERE request->>'prompt' LIKE '%version'");
        app.database.run(&change).await;
        Self {
            app,
            caller,
            gate,
            running,
            changed,
            behind,
            _upstream: upstream,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_task_that_cannot_be_read_stops_no_other_and_ends() {
    let settings = "lease_ms = 1000\nattempts_max = 2\n";
    let queue = Queue::with(settings, "request = request - 'n'").await;
    let caller = &queue.caller;

    queue.gate.add_permits(1);

    for id in [&queue.running, &queue.behind] {
        assert_eq!(caller.wait_for(id).await["status"], "completed");
    }
    let ended = caller.wait_for(&queue.changed).await;
    assert_eq!(
        (&ended["status"], &ended["cost"]),
        (&json!("failed"), &json!(0.0))
    );
    assert_eq!(caller.balance().await["balance"], 0.6);
    queue.app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_task_whose_attempts_cannot_be_read_begins_anew() {
    let queue = Queue::with("", "tried = '[{}]'").await;

    queue.gate.add_permits(1);

    for id in [&queue.running, &queue.changed, &queue.behind] {
        assert_eq!(queue.caller.wait_for(id).await["status"], "completed");
    }
    queue.app.finish().await;
}

#[tokio::test]
async fn an_ended_task_that_cannot_be_read_is_neither_pending_nor_missing() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let answer = caller.generate("a bridge").await;
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let broken = "ALTER TABLE task_history ADD COLUMN kept jsonb; UPDATE task_history SET kept = images, images = '[{}]'";
    app.database.run(broken).await;

    let shown = caller.get(&format!("/v1/images/tasks/{id}")).await;

    insta::assert_json_snapshot!(shown.refused(500), @r#"
    {
      "error": {
        "code": null,
        "message": "the database did not answer",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    let mended = "UPDATE task_history SET images = kept; ALTER TABLE task_history DROP COLUMN kept";
    app.database.run(mended).await;
    app.finish().await;
}
