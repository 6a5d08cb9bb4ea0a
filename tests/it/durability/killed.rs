//! `kill -9`, at any moment.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{accepted, generated_by, left, submit};
use crate::harness::{
    caller::{Answer, Caller},
    database::TestDatabase,
    process::{Setup, postmaster, signal},
    upstream::Upstream,
};

const ROUNDS: usize = 15;
const REQUESTS_A_ROUND: usize = 3;

fn demo(delay_ms: u32, tasks: &str) -> String {
    format!(
        "[tasks]\nlease_ms = 1000\n{tasks}\n[backends.demo]\nkind = \"demo\"\ndelay_ms = {delay_ms}\n"
    )
}

#[tokio::test]
async fn tasks_queued_and_running_end_after_a_restart() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, &demo(60_000, "running_max = 2"));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "10").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(accepted(&caller, &format!("image {n}")).await);
    }
    database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'running'", 2)
        .await;
    let queued = database.number("SELECT count(*) FROM tasks WHERE status = 'queued'");
    assert_eq!(queued.await, 3);

    gateway.kill();
    let gateway = setup.with(&demo(0, "running_max = 2")).serve();

    let caller = caller.at(&gateway.url());
    for id in &ids {
        let task = caller.wait_for(id).await;
        assert_eq!(
            (&task["status"], &task["cost"]),
            (&"completed".into(), &0.2.into())
        );
    }
    assert_eq!(left(&caller).await, 9.0);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn an_acknowledged_request_is_never_lost() {
    let database = TestDatabase::create().await;
    // It is started again however often it is lost.
    let setup = Setup::on(&database, &demo(0, "attempts_max = 100"));
    let mut acknowledged = HashSet::new();
    let mut caller = database.caller("http://unused", "100").await;
    for round in 0..ROUNDS {
        let gateway = setup.serve();
        caller = caller.at(&gateway.url());
        // The first request pays for opening the connections.
        assert_eq!(caller.get("/v1/images/tasks").await.status, 200);
        let ask = async |n: usize| {
            let prompt = format!("round {round}, image {n}");
            let body = serde_json::json!({"model": "gpt-image-2", "prompt": prompt});
            let request = caller.request(reqwest::Method::POST, "/v1/images/generations/async");
            let answer = request.json(&body).send().await.ok()?;
            assert_eq!(answer.status(), 202);
            let ticket: serde_json::Value = answer.json().await.ok()?;
            Some(ticket["task_id"].as_str()?.to_owned())
        };
        let asking = join_all((0..REQUESTS_A_ROUND).map(ask));
        let killing = async {
            let moment = Duration::from_micros(rand::random_range(0..50_000));
            tokio::time::sleep(moment).await;
            gateway.signal("KILL");
        };
        let (answers, ()) = tokio::join!(asking, killing);
        gateway.wait_end();
        acknowledged.extend(answers.into_iter().flatten());
    }
    let gateway = setup.serve();
    let caller = caller.at(&gateway.url());

    for id in &acknowledged {
        assert_eq!(caller.wait_for(id).await["status"], "completed");
    }
    database
        .wait_for("SELECT count(*) FROM tasks WHERE status <> 'completed'", 0)
        .await;
    let charged =
        database.number("SELECT -sum(balance_change)::bigint FROM entries WHERE kind = 'capture'");
    let tasks = database.number("SELECT count(*) FROM tasks").await;
    assert_eq!(charged.await, tasks * 200_000);
    assert!(!acknowledged.is_empty());

    gateway.end();
    database.assert_invariants().await;
}

/// With the default lease; each task is one round.
#[tokio::test]
async fn tasks_of_a_killed_worker_end_at_another_within_35_seconds() {
    let database = TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let settings = generated_by(&upstream, "[tasks]\nrunning_max = 50\n");
    let killed = Setup::on(&database, &settings).serve();
    let caller = database.caller(&killed.url(), "100").await;
    let _gate = upstream.hold(50);
    join_all((0..50).map(|n| {
        let caller = caller.clone();
        async move { accepted(&caller, &format!("image {n}")).await }
    }))
    .await;
    upstream.wait_for(50).await;
    let other = Setup::on(&database, &settings).serve();
    let began = Instant::now();

    killed.kill();

    let open = "SELECT count(*) FROM tasks WHERE status <> 'completed'";
    while database.number(open).await > 0 {
        assert!(began.elapsed() < Duration::from_secs(35), "tasks are open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    crate::harness::say(&format!("from kill to the end: {:?}", began.elapsed()));
    let lost = "SELECT count(*) FROM tasks WHERE attempts = 2";
    assert_eq!(database.number(lost).await, 50);
    other.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn a_task_that_is_always_lost_fails_and_costs_nothing() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, &demo(60_000, "attempts_max = 2"));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "1").await;
    let ask = async |caller: &Caller, path: &str| {
        let body = json!({"model": "gpt-image-2", "prompt": "never done"});
        let request = caller.request(Method::POST, path).json(&body);
        Answer::of(request.header("idempotency-key", "once")).await
    };
    let ticket = ask(&caller, "/v1/images/generations/async").await;
    let id = ticket.json()["id"].as_str().unwrap().to_owned();
    gateway.kill();
    let gateway = setup.serve();
    database
        .wait_for(
            "SELECT count(*) FROM tasks WHERE status = 'running' AND attempts = 2",
            1,
        )
        .await;
    gateway.kill();

    let gateway = setup.serve();

    let caller = caller.at(&gateway.url());
    let task = caller.wait_for(&id).await;
    assert_eq!(
        (&task["status"], &task["cost"]),
        (&"failed".into(), &0.0.into())
    );
    insta::assert_json_snapshot!(task["error"], @r#"
    {
      "code": "internal_error",
      "message": "the task was begun several times and never ended",
      "type": "server_error"
    }
    "#);
    let repeat = ask(&caller, "/v1/images/generations").await;
    insta::assert_json_snapshot!(repeat.refused(500), @r#"
    {
      "error": {
        "code": "internal_error",
        "message": "the task was begun several times and never ended",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(left(&caller).await, 1.0);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn without_its_private_database_the_gateway_ends_at_once() {
    let setup = Setup::new(&demo(60_000, ""));
    let gateway = setup.serve();
    let key = std::fs::read_to_string(setup.data_dir().join("first-key")).unwrap();
    let database = TestDatabase::create().await;
    let mut caller = database.caller(&gateway.url(), "0").await;
    key.trim().clone_into(&mut caller.key);
    assert_eq!(submit(&caller, "under way").await.status, 202);

    signal("KILL", postmaster(&setup.data_dir()).unwrap());
    let status = gateway.wait_end();

    assert_eq!(status.code(), Some(1));
    let said = gateway.stderr();
    let last_words: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("easel: "))
        .collect();
    assert_eq!(
        last_words,
        [
            "easel: the private PostgreSQL exited unexpectedly: see postgres/server.log in the data directory"
        ],
    );
    drop(gateway);
    // The tasks it had accepted are still there.
    let gateway = setup.with(&demo(0, "")).serve();
    let caller = caller.at(&gateway.url());
    let tasks = caller.get("/v1/images/tasks").await.json();
    let id = tasks["data"][0]["id"].as_str().unwrap();
    assert_eq!(caller.wait_for(id).await["status"], "completed");
    assert_eq!(left(&caller).await, 99.8);
    gateway.end();
}
