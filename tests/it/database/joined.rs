//! Equal calls at the same time, each retried: a retry gets what its own call has lost, and nothing else.

use std::{collections::BTreeSet, time::Duration};

use easel::tasks::repeats;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{Behind, expired, listening_pid};
use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    database::TestDatabase,
    fault_proxy::FaultProxy,
    process::Setup,
    upstream::{Gate, Upstream},
};

const CALLS: usize = 4;
/// The shortest wait of the official SDKs before a retry.
const BACKOFF: Duration = Duration::from_millis(500);
const GONE: &str = "SELECT count(*) FROM tasks WHERE waiter = 0";

async fn retry(caller: &Caller, number: u32) -> Answer {
    let request = caller.request(Method::POST, "/v1/images/generations");
    let body = json!({"model": "gpt-image-2", "prompt": "a cup"});
    Answer::of(
        request
            .header("x-stainless-retry-count", number)
            .json(&body),
    )
    .await
}

fn ids(answers: &[Answer]) -> BTreeSet<String> {
    let id = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    answers.iter().map(id).collect()
}

/// Makes calls that are held back, and drops them once the upstream generates.
async fn lost_calls(upstream: &Upstream, callers: &[&Caller]) -> Vec<Gate> {
    let gates: Vec<Gate> = callers.iter().map(|_| upstream.hold(1)).collect();
    let before = upstream.calls().len();
    let calls: Vec<_> = callers.iter().map(|at| at.waiting("a cup")).collect();
    upstream.wait_for(before + callers.len()).await;
    for call in &calls {
        call.abort();
    }
    gates
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_retried_calls_get_four_images() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let replica = app.replica(&upstream.gateway("")).await;
    let here = app.caller("2").await;
    let there = here.at(&replica.url);
    let gates = lost_calls(&upstream, &[&here; CALLS]).await;
    tokio::time::sleep(BACKOFF).await;
    // At any replica.
    let retries = join_all([&here, &there, &here, &there].map(|at| retry(at, 1)));
    let release = async {
        tokio::time::sleep(BACKOFF).await;
        for gate in &gates {
            gate.add_permits(1);
        }
    };
    let (answers, ()) = tokio::join!(retries, release);

    assert_eq!(ids(&answers).len(), CALLS);
    assert_eq!(upstream.calls().len(), CALLS, "none was bought twice");
    assert_eq!(here.balance().await["balance"], 1.2);
    // What was delivered to them is given to no other request.
    let fifth = retry(&here, 1).await;
    assert!(!ids(&answers).contains(fifth.json()["id"].as_str().unwrap()));
    assert_eq!(upstream.calls().len(), CALLS + 1);
    replica.finish().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_retried_repeatedly_gets_one_image() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1").await;
    let gates = lost_calls(&upstream, &[&caller]).await;
    app.database.wait_for(GONE, 1).await;
    for number in 1..3 {
        let lost = retry(&caller, number);
        let lost = tokio::time::timeout(BACKOFF, lost).await;
        assert!(lost.is_err(), "{lost:?}");
        app.database.wait_for(GONE, 1).await;
    }
    gates[0].add_permits(1);
    let answer = retry(&caller, 3).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(upstream.calls().len(), 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_with_a_waiting_caller_is_not_joined() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let replica = app.replica(&upstream.gateway("")).await;
    let here = app.caller("1").await;
    let there = here.at(&replica.url);
    let gate = upstream.hold(1);
    let waits = here.waiting("a cup");
    upstream.wait_for(1).await;
    // Both replicas know that its caller is still there, the other one because it asks.
    let first = retry(&here, 1).await;
    let second = super::in_time(retry(&there, 1)).await;
    gate.add_permits(1);
    let answers = [waits.await.unwrap(), first, second];
    assert_eq!(ids(&answers).len(), 3);
    assert_eq!(upstream.calls().len(), 3);
    replica.finish().await;
    app.finish().await;
}

/// The replica that the caller has left cannot record that: its connections to the database have gone silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_a_replica_that_lost_its_database_gets_its_image_at_another() {
    let behind = Behind::start("").await;
    let replica = behind.app.replica(&behind.upstream.gateway("")).await;
    let here = behind.caller("1").await;
    let there = here.at(&replica.url);
    let gate = behind.upstream.hold(1);
    let call = here.waiting("a cup");
    behind.upstream.wait_for(1).await;

    behind.proxy.freeze();
    call.abort();
    let release = async {
        tokio::time::sleep(4 * BACKOFF).await;
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(retry(&there, 1), release);

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(behind.upstream.calls().len(), 1, "none was bought twice");
    assert_eq!(there.balance().await["balance"], 0.8);
    replica.finish().await;
    behind.app.finish().await;
}

/// The replica that the caller has left could not store its request yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_could_not_be_accepted_before_its_caller_left_is_dropped() {
    let behind = Behind::start("").await;
    let replica = behind.app.replica(&behind.upstream.gateway("")).await;
    let here = behind.caller("1").await;
    let there = here.at(&replica.url);
    assert_eq!(here.generate("a bridge").await.status, 200);

    behind.proxy.freeze();
    let call = here.waiting("a cup");
    tokio::time::sleep(BACKOFF).await;
    call.abort();
    tokio::time::sleep(BACKOFF).await;
    let answer = retry(&there, 1).await;
    // Comes after the first call, whose turn is over when this one is answered.
    let later = here.generate("a tower").await;

    assert_eq!((answer.status, later.status), (200, 200));
    assert_eq!(behind.upstream.calls().len(), 3, "none was bought twice");
    assert_eq!(there.balance().await["balance"], 0.4);
    replica.finish().await;
    behind.app.finish().await;
}

/// Its callers retry at another replica before its tasks are found to be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_a_killed_replica_get_their_images_at_another() {
    let database = TestDatabase::create().await;
    let proxy = database.proxy().await;
    come_again_after_a_kill(database, &proxy, async |_: &TestDatabase| {}).await;
}

/// PostgreSQL does not notice that the connection has gone silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_does_not_keep_a_killed_replica_alive() {
    let database = TestDatabase::create().await;
    let proxy = database.proxy().await;
    let relisten = async |database: &TestDatabase| {
        let listener = listening_pid(database).await;
        proxy.freeze();
        while listening_pid(database).await == listener {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    come_again_after_a_kill(database, &proxy, relisten).await;
}

/// `before` runs once the replica to be killed is up.
async fn come_again_after_a_kill(
    database: TestDatabase,
    proxy: &FaultProxy,
    before: impl AsyncFnOnce(&TestDatabase),
) {
    let upstream = Upstream::start().await;
    let settings = format!("[tasks]\nlease_ms = 1500\n{}", upstream.gateway(""));
    let url = database.url_through(proxy);
    let killed = Setup::new(&settings).env("DATABASE_URL", &url).serve();
    before(&database).await;
    let other = Setup::on(&database, &settings).serve();
    let here = database.caller(&killed.url(), "2").await;
    let gates: Vec<Gate> = (0..2).map(|_| upstream.hold(1)).collect();
    let calls: Vec<_> = (0..2).map(|_| here.waiting("a cup")).collect();
    upstream.wait_for(2).await;

    killed.kill();
    for call in calls {
        assert!(call.await.is_err(), "its connection was cut");
    }
    drop(gates);
    tokio::time::sleep(BACKOFF).await;
    let there = here.at(&other.url());
    let answers = join_all([retry(&there, 1), retry(&there, 1)]).await;

    assert_eq!(ids(&answers).len(), 2);
    let tasks = "SELECT count(*) FROM tasks";
    assert_eq!(database.number(tasks).await, 2);
    assert_eq!(there.balance().await["balance"], 1.6);
    other.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn a_thousand_equal_tasks_neither_slow_retries_nor_hide_lost_tasks() {
    let app = TestApp::start().await;
    let caller = app.caller("1000").await;
    expired::insert(&app, &caller, 1_000, "running", "-1 hour").await;
    let mut conn = app.database.connect().await;
    let lost = "UPDATE open_tasks SET waiter = CASE WHEN id = (SELECT id FROM tasks ORDER BY id LIMIT 1) THEN 0 ELSE 1 END";
    sqlx::query(lost).execute(&mut conn).await.unwrap();

    let (keys, fingerprints) = (vec![caller.key_id; 100], vec![Vec::new(); 100]);
    let same = repeats::same(&mut conn, &keys, &fingerprints)
        .await
        .unwrap();
    assert_eq!(
        same.len(),
        256,
        "only the candidates are read, once for all retries"
    );
    assert_eq!(same.iter().filter(|same| same.waiter == Some(0)).count(), 1);

    let end = "UPDATE open_tasks SET deadline_at = now(), lease_until = now()";
    sqlx::query(end).execute(&mut conn).await.unwrap();
    app.finish().await;
}
