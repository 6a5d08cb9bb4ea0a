//! The queue: the limit of a route over all replicas, and the order of tasks.

use std::time::{Duration, Instant};

use easel::backend::Catalog;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use super::{routed, submitted};
use crate::harness::{
    self, TestApp,
    caller::Caller,
    upstream::{Reply, Upstream, image},
};

#[tokio::test]
async fn a_route_never_exceeds_its_concurrency_limit() {
    let upstream = Upstream::start().await;
    let gate = upstream.hold(8);
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
    // Long enough for both to poll the queue several times.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(upstream.calls().len(), 3);

    gate.add_permits(1);
    upstream.wait_for(4).await;
    gate.add_permits(7);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    assert_eq!(upstream.calls().len(), 8);
    other.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn the_next_priority_generates_when_a_route_is_full() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let gate = first.hold(1);
    let routes =
        r#"{ backend = "first", max_concurrency = 1 }, { backend = "second", priority = 1 }"#;
    let settings = routed(&[("first", &first), ("second", &second)], routes, "");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("2").await;
    let held = submitted(&caller, "first").await;
    first.wait_for(1).await;
    assert_eq!(caller.generate("second").await.status, 200);
    assert_eq!(second.calls().len(), 1);
    gate.add_permits(1);
    assert_eq!(caller.wait_for(&held).await["status"], "completed");
    app.finish().await;
}

#[tokio::test]
async fn many_tasks_of_one_account_do_not_delay_another() {
    let upstream = Upstream::start().await;
    let gate = upstream.hold(1);
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
    let result: Vec<String> = upstream
        .calls()
        .iter()
        .map(|call| call.fields["prompt"].as_str().unwrap().to_owned())
        .collect();
    let turn = result.iter().position(|prompt| prompt == "alone").unwrap();
    // One was being generated already; another may have been claimed as that one ended.
    assert!(turn <= 2, "{result:?}");
    let crowd: Vec<_> = result.iter().filter(|prompt| *prompt != "alone").collect();
    let in_order: Vec<String> = (0..30).map(|index| format!("crowd {index}")).collect();
    assert!(crowd.into_iter().eq(&in_order), "{result:?}");
    app.finish().await;
}

#[tokio::test]
async fn a_queue_that_moves_fast_delays_no_newcomer_to_another_models() {
    let (fast, slow) = (Upstream::start().await, Upstream::start().await);
    let gate = slow.hold(1);
    let more = "[models.fast]\nroutes = [{ backend = 'fast', upstream_model = 'gpt-image-2', max_concurrency = 1 }]\n";
    let routes = r#"{ backend = "slow", max_concurrency = 1 }"#;
    let settings = routed(&[("fast", &fast), ("slow", &slow)], routes, more);
    let app = TestApp::with(&settings).await;
    let (crowd, one) = (app.caller("100").await, app.caller("10").await);
    let mut tasks = Vec::new();
    for index in 0..30 {
        tasks.push(submitted(&crowd, &format!("crowd {index}")).await);
    }
    slow.wait_for(1).await;
    for index in 0..40 {
        let body = json!({"model": "fast", "prompt": format!("fast {index}")});
        let task = one.submit(&body).await;
        assert_eq!(one.wait_for(&task).await["status"], "completed");
    }
    let alone = submitted(&one, "alone").await;
    gate.add_permits(1);
    assert_eq!(one.wait_for(&alone).await["status"], "completed");
    for task in tasks {
        assert_eq!(crowd.wait_for(&task).await["status"], "completed");
    }
    let calls = slow.calls();
    let turn = calls
        .iter()
        .position(|call| call.fields["prompt"] == "alone")
        .unwrap();
    assert!(turn <= 2, "it was number {turn}");
    app.finish().await;
}

#[tokio::test]
async fn tasks_waiting_for_a_retry_occupy_no_slot() {
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
    assert_eq!(caller.generate("second").await.status, 200);
    assert_eq!(
        caller
            .get(&format!("/v1/images/tasks/{failed}"))
            .await
            .json()["status"],
        "pending"
    );
    let mut conn = app.database.connect().await;
    sqlx::query("UPDATE open_tasks SET run_at = now() WHERE status = 'queued'")
        .execute(&mut conn)
        .await
        .unwrap();
    assert_eq!(caller.wait_for(&failed).await["status"], "completed");
    drop(conn);
    app.finish().await;
}

#[tokio::test]
async fn tasks_waiting_for_a_route_count_toward_queued_max() {
    let upstream = Upstream::start().await;
    let gate = upstream.hold(1);
    let routes = r#"{ backend = "up", max_concurrency = 1 }"#;
    let settings = routed(&[("up", &upstream)], routes, "[tasks]\nqueued_max = 3\n");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("2").await;
    let mut tasks = vec![submitted(&caller, "running").await];
    upstream.wait_for(1).await;
    // The queue is counted at each poll, plus what has arrived since.
    let body = json!({"model": "gpt-image-2", "prompt": "waiting"});
    let full = loop {
        assert!(tasks.len() < 10, "the queue has no limit");
        let answer = caller.post("/v1/images/generations?async=1", &body).await;
        match answer.status {
            202 => tasks.push(answer.json()["task_id"].as_str().unwrap().to_owned()),
            _ => break answer,
        }
        // Whether or not the queue was polled meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    full.assert_refused(503, "the queue is full");
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}

/// Submits an async edit with a mask; returns the task's id.
async fn submitted_edit(caller: &Caller, prompt: &str) -> String {
    let file = |name: &str| {
        Part::bytes(image(16, 16, 0))
            .file_name(format!("{name}.png"))
            .mime_str("image/png")
            .unwrap()
    };
    let form = Form::new()
        .text("model", "gpt-image-2")
        .text("prompt", prompt.to_owned())
        .part("image", file("image"))
        .part("mask", file("mask"));
    let ticket = caller.post_form("/v1/images/edits/async", form).await;
    assert_eq!(ticket.status, 202, "{ticket:?}");
    ticket.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tasks_waiting_for_the_only_mask_route_delay_no_others() {
    let masks = Upstream::start().await;
    let gate = masks.hold(40);
    // The demo backend accepts no masks.
    let settings = format!(
        "[backends.plain]\nkind = 'demo'\n{}",
        routed(
            &[("masks", &masks)],
            r#"{ backend = "masks", priority = 1, max_concurrency = 1 }, { backend = "plain", max_concurrency = 1 }"#,
            "",
        )
    );
    let app = TestApp::with(&settings).await;
    let (crowd, one) = (app.caller("100").await, app.caller("10").await);
    let mut edits = Vec::new();
    for index in 0..30 {
        edits.push(submitted_edit(&crowd, &format!("edit {index}")).await);
    }
    masks.wait_for(1).await;
    for caller in [&crowd, &one] {
        let began = Instant::now();
        for index in 0..5 {
            assert_eq!(caller.generate(&format!("text {index}")).await.status, 200);
        }
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "the other tasks delay them"
        );
    }
    assert_eq!(masks.calls().len(), 1, "one at once");
    gate.add_permits(40);
    for task in edits {
        assert_eq!(crowd.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn tasks_whose_only_route_is_full_let_others_pass() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let [gate_1, gate_2] = [&first, &second].map(|upstream| upstream.hold(1));
    let settings = routed(
        &[("first", &first), ("second", &second)],
        r#"{ backend = "first", max_concurrency = 1 }, { backend = "second", priority = 1, max_concurrency = 1 }"#,
        "",
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("10").await;
    let mut tasks = Vec::new();
    for index in 0..8 {
        tasks.push(submitted(&caller, &format!("image {index}")).await);
    }
    first.wait_for(1).await;
    second.wait_for(1).await;
    // As after a worker was lost: the jobs of these tasks are resumed over the second route, and nowhere else.
    let mut conn = app.database.connect().await;
    sqlx::query("UPDATE open_tasks SET route = 'second', jobs = '{a}' WHERE status = 'queued'")
        .execute(&mut conn)
        .await
        .unwrap();
    gate_1.add_permits(1);
    let began = Instant::now();
    assert_eq!(caller.generate("free to go").await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(second.calls().len(), 1);
    gate_2.add_permits(1);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    drop(conn);
    app.finish().await;
}

#[tokio::test]
async fn a_renamed_model_counts_tasks_running_under_its_old_name() {
    let upstream = Upstream::start().await;
    let gate = upstream.hold(4);
    let model = |name: &str, aliases: &str| {
        format!(
            "[backends.up]\n{}[models.{name}]\naliases = [{aliases}]\n\
             routes = [{{ backend = 'up', upstream_model = 'gpt-image-2', max_concurrency = 1 }}]\n",
            upstream.settings("")
        )
    };
    let app = TestApp::with(&model("old", "")).await;
    let caller = app.caller("2").await;
    let body = |model: &str| json!({"model": model, "prompt": "a bridge"});
    let mut tasks = vec![
        caller.submit(&body("old")).await,
        caller.submit(&body("old")).await,
    ];
    upstream.wait_for(1).await;
    let dir = tempfile::tempdir().unwrap();
    let renamed = harness::config(&dir, &model("new", "'old'"), &[]);
    let catalog = Catalog::open(&renamed, Some(&app.app.catalog())).unwrap();
    app.app.replace_catalog(catalog);
    tasks.push(caller.submit(&body("new")).await);
    tasks.push(caller.submit(&body("old")).await);
    // Long enough to poll the queue several times.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(upstream.calls().len(), 1);
    for running in 2..=4 {
        gate.add_permits(1);
        upstream.wait_for(running).await;
        assert_eq!(upstream.calls().len(), running);
    }
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn tasks_that_cannot_end_in_time_are_not_started() {
    let upstream = Upstream::start().await;
    let slow = Reply::an_image().after(Duration::from_secs(2));
    upstream.always(Some(slow));
    let routes = r#"{ backend = "up", max_concurrency = 2 }"#;
    // The third pair has less time left than one task and its settlement need.
    let more = "[tasks]\ndeadline_ms = 6000\nlease_ms = 2000\n";
    let app = TestApp::with(&routed(&[("up", &upstream)], routes, more)).await;
    let caller = app.caller("10").await;
    let mut tasks = Vec::new();
    for index in 0..8 {
        tasks.push(submitted(&caller, &format!("image {index}")).await);
    }
    let mut delivered = 0;
    for task in &tasks {
        let ended = loop {
            let task = caller.get(&format!("/v1/images/tasks/{task}")).await.json();
            if task["status"] != "pending" {
                break task;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        match ended["status"].as_str().unwrap() {
            "completed" => delivered += 1,
            _ => assert_eq!(ended["error"]["code"], "deadline_exceeded", "{ended}"),
        }
    }
    assert!(delivered >= 2, "{delivered} were delivered");
    assert_eq!(
        upstream.calls().len(),
        delivered,
        "every bought image is delivered"
    );
    app.finish().await;
}
