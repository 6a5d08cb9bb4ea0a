//! Circuits: what opens one, which tasks wait for it, and that nothing is lost meanwhile.

use std::time::{Duration, Instant};

use easel::backend::Circuit;
use serde_json::json;

use super::{attempts, routed, submitted, tried};
use crate::harness::{
    TestApp,
    caller::Caller,
    process::Setup,
    upstream::{Reply, Upstream},
};

/// One failure opens a circuit, unless a request can be its cause; the next probe comes soon.
const TOUCHY: &str =
    "[routing]\nfailures_max = 1\nopen_ms = 1500\nretry_wait_ms = 10\nretry_wait_max_ms = 10\n";

fn failure() -> Reply {
    Reply::error(500, "server_error", "oh")
}

async fn status(caller: &Caller, task: &str) -> String {
    let task = caller.get(&format!("/v1/images/tasks/{task}")).await.json();
    task["status"].as_str().unwrap().to_owned()
}

fn circuit(app: &TestApp, backend: &str) -> Circuit {
    let catalog = app.app.catalog();
    let mut circuits = catalog.circuits();
    circuits.find(|(name, _)| *name == backend).unwrap().1
}

/// Fails a task of an otherwise unused account, by an invalid key at the upstream.
async fn open_circuit(app: &TestApp, upstream: &Upstream) {
    upstream.next(Reply::error(401, "invalid_api_key", "Who?"));
    let refused = app
        .caller("1")
        .await
        .generate("the one that finds out")
        .await;
    assert_eq!(refused.status, 502, "{refused:?}");
    assert_eq!(circuit(app, "up"), Circuit::Open);
}

#[tokio::test]
async fn tasks_stay_queued_while_the_circuits_of_all_their_routes_are_open() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, TOUCHY)).await;
    let caller = app.caller("10").await;
    open_circuit(&app, &upstream).await;
    let mut tasks = Vec::new();
    for index in 0..20 {
        tasks.push(submitted(&caller, &format!("queued {index}")).await);
    }
    // A sync request is one of them.
    let began = Instant::now();
    let answer = caller.generate("waiting").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "no circuit was open"
    );
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    assert_eq!(upstream.calls().len(), 22);
    assert_eq!(circuit(&app, "up"), Circuit::Closed);
    app.finish().await;
}

#[tokio::test]
async fn one_failure_of_a_lone_route_fails_no_other_task() {
    let upstream = Upstream::start().await;
    let routes = r#"{ backend = "up", max_concurrency = 1 }"#;
    let app = TestApp::with(&routed(&[("up", &upstream)], routes, TOUCHY)).await;
    let caller = app.caller("10").await;
    // Closed without an answer: no request is the cause.
    upstream.always(Some(Reply::error(401, "invalid_api_key", "Who?")));
    let first = submitted(&caller, "first").await;
    let mut tasks = Vec::new();
    for index in 0..19 {
        tasks.push(submitted(&caller, &format!("behind {index}")).await);
    }
    assert_eq!(caller.wait_for(&first).await["status"], "failed");
    upstream.always(None);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_task_gets_all_its_attempts_although_the_circuit_opens_in_between() {
    let dead = Upstream::start().await;
    let url = dead.url.clone();
    drop(dead);
    let backend = format!("[backends.up]\nkind = 'openai'\nbase_url = '{url}/v1'\napi_key = 'k'\n");
    let settings = format!(
        "{}{backend}[models.gpt-image-2]\nroutes = ['up']\n",
        TOUCHY.replace("1500", "100")
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    assert_eq!(caller.generate("nobody is there").await.status, 502);
    let unreachable = ("up", Some("unreachable"));
    assert_eq!(attempts(&app.database).await, tried(&[unreachable; 3]));
    app.finish().await;
}

#[tokio::test]
async fn requests_of_one_account_never_open_a_circuit() {
    let upstream = Upstream::start().await;
    let settings = format!(
        "[tasks]\nattempts_max = 1\n{}",
        TOUCHY.replace("max = 1\nopen", "max = 2\nopen")
    );
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, &settings)).await;
    let (one, other) = (app.caller("1").await, app.caller("1").await);
    let text = || Reply::json(200, &json!({"data": []}));
    for reply in [failure(), text(), failure(), text(), failure(), text()] {
        upstream.next(reply);
        assert_eq!(one.generate("a trick").await.status, 502);
    }
    assert_eq!(circuit(&app, "up"), Circuit::Closed);
    assert_eq!(other.generate("a bridge").await.status, 200);

    // The same from two accounts is the backend's fault.
    for caller in [&one, &other] {
        upstream.next(failure());
        assert_eq!(caller.generate("a bridge").await.status, 502);
    }
    assert_eq!(circuit(&app, "up"), Circuit::Open);
    assert_eq!(other.generate("a bridge").await.status, 200, "it waited");
    app.finish().await;
}

#[tokio::test]
async fn an_account_without_money_cannot_block_a_backend() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, TOUCHY)).await;
    let (poor, caller) = (app.caller("0").await, app.caller("10").await);
    open_circuit(&app, &upstream).await;
    let task = submitted(&caller, "patience").await;
    let began = Instant::now();
    while status(&caller, &task).await == "pending" {
        assert_eq!(poor.generate("for nothing").await.status, 402);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the refused requests used up the probe"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(caller.wait_for(&task).await["status"], "completed");
    app.finish().await;
}

#[tokio::test]
async fn during_a_probe_other_tasks_wait_without_an_attempt() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, TOUCHY)).await;
    let caller = app.caller("10").await;
    open_circuit(&app, &upstream).await;
    let gate = upstream.hold(1);
    let tasks = [
        submitted(&caller, "the probe").await,
        submitted(&caller, "second").await,
        submitted(&caller, "third").await,
    ];
    upstream.wait_for(2).await;
    assert_eq!(circuit(&app, "up"), Circuit::Probing);
    let ready = caller.get("/readyz?verbose").await.json();
    assert_eq!(ready["backends"], json!({"up": "probing"}));
    // Longer than between two polls of the queue, shorter than until another probe.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(upstream.calls().len(), 2, "one at a time");
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    let mut conn = app.database.connect().await;
    let attempts: Vec<i16> =
        sqlx::query_scalar("SELECT attempts FROM tasks WHERE status = 'completed'")
            .fetch_all(&mut conn)
            .await
            .unwrap();
    assert_eq!(attempts, [1, 1, 1]);
    drop(conn);
    app.finish().await;
}

#[tokio::test]
async fn calls_cut_off_by_our_deadline_do_not_count_against_a_backend() {
    let upstream = Upstream::start().await;
    let settings = format!("[tasks]\ndeadline_ms = 2000\nlease_ms = 1000\n{TOUCHY}");
    let app = TestApp::with(&routed(&[("up", &upstream)], r#""up""#, &settings)).await;
    let callers = [app.caller("1").await, app.caller("1").await];
    for caller in &callers {
        upstream.next(Reply::an_image().after(Duration::from_mins(1)));
        assert_eq!(caller.generate("too long").await.status, 504);
    }
    assert_eq!(circuit(&app, "up"), Circuit::Closed);
    app.finish().await;
}

// The upstream has to answer while the test waits for the stopped process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_while_this_process_was_stopped_do_not_count_against_a_backend() {
    let database = crate::harness::database::TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let settings = routed(
        &[("up", &upstream)],
        r#"{ backend = "up", timeout_ms = 1500 }"#,
        &format!(
            "[tasks]\nattempts_max = 1\n{}",
            TOUCHY.replace("1500", "60000")
        ),
    );
    let gateway = Setup::on(&database, &settings).serve();
    let callers = [
        database.caller(&gateway.url(), "1").await,
        database.caller(&gateway.url(), "1").await,
    ];
    // From each of two accounts, a call that is cut off because the process was stopped.
    let mut tasks = Vec::new();
    for caller in &callers {
        upstream.next(Reply::an_image().after(Duration::from_mins(1)));
        tasks.push(submitted(caller, "a bridge").await);
    }
    upstream.wait_for(2).await;
    gateway.signal("STOP");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    gateway.signal("CONT");
    for (caller, task) in callers.iter().zip(tasks) {
        assert_eq!(caller.wait_for(&task).await["status"], "failed");
    }
    gateway.wait_logged("this process stalled");
    let ready = callers[0].get("/readyz?verbose").await.json();
    assert_eq!(ready["backends"], json!({"up": "closed"}));
    assert_eq!(callers[0].generate("another").await.status, 200);
    gateway.end();
    database.assert_invariants().await;
}
