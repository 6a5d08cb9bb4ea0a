//! A task that cannot be read, as another version may have written it: it stops no other, and ends.

use serde_json::json;

use crate::harness::{TestApp, upstream::Upstream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_task_that_cannot_be_read_stops_no_other_and_ends() {
    let upstream = Upstream::start().await;
    let settings = "[tasks]\nrunning_max = 1\nlease_ms = 1000\nattempts_max = 2\n";
    let app = TestApp::with(&format!("{settings}{}", upstream.gateway(""))).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let submit = async |prompt: &str| {
        let body = json!({"model": "gpt-image-2", "prompt": prompt});
        caller.submit(&body).await
    };
    let running = submit("a bridge").await;
    upstream.wait_for(1).await;
    let unreadable = submit("a bridge of another version").await;
    let behind = submit("a bridge behind it").await;
    let remove =
        "UPDATE tasks SET request = request - 'n' WHERE request->>'prompt' LIKE '%version'";
    app.database.run(remove).await;

    gate.add_permits(1);

    for id in [&running, &behind] {
        assert_eq!(caller.wait_for(id).await["status"], "completed");
    }
    let ended = caller.wait_for(&unreadable).await;
    assert_eq!(
        (&ended["status"], &ended["cost"]),
        (&json!("failed"), &json!(0.0))
    );
    assert_eq!(caller.balance().await["balance"], 0.6);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_task_whose_attempts_cannot_be_read_begins_anew() {
    let upstream = Upstream::start().await;
    let settings = "[tasks]\nrunning_max = 1\n";
    let app = TestApp::with(&format!("{settings}{}", upstream.gateway(""))).await;
    let caller = app.caller("1").await;
    let gate = upstream.hold(1);
    let submit = async |prompt: &str| {
        let body = json!({"model": "gpt-image-2", "prompt": prompt});
        caller.submit(&body).await
    };
    let running = submit("a bridge").await;
    upstream.wait_for(1).await;
    let queued = submit("a bridge of another version").await;
    let behind = submit("a bridge behind it").await;
    let change = "UPDATE tasks SET tried = '[{}]' WHERE request->>'prompt' LIKE '%version'";
    app.database.run(change).await;

    gate.add_permits(1);

    for id in [&running, &queued, &behind] {
        assert_eq!(caller.wait_for(id).await["status"], "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_ended_task_that_cannot_be_read_is_neither_pending_nor_missing() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let answer = caller.generate("a bridge").await;
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let broken =
        "ALTER TABLE tasks ADD COLUMN kept jsonb; UPDATE tasks SET kept = images, images = '[{}]'";
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
    let mended = "UPDATE tasks SET images = kept; ALTER TABLE tasks DROP COLUMN kept";
    app.database.run(mended).await;
    app.finish().await;
}
