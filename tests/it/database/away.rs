//! A database that cannot be reached for a while: clients get an error in time, and everything continues afterwards.

use std::time::{Duration, Instant};

use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::json;

use super::{BRIEF, Behind, in_time};
use crate::harness::{
    TestApp,
    database::TestDatabase,
    fault_proxy::Fault,
    process::Setup,
    upstream::{Gate, Upstream},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_a_retryable_error_within_five_seconds() {
    let behind = Behind::start("").await;
    let caller = behind.caller("1").await;
    assert_eq!(caller.generate("before").await.status, 200);
    let mut bodies = Vec::new();
    for fault in [Fault::BlackHole, Fault::Reset] {
        behind.proxy.set(fault);
        let body = json!({"model": "gpt-image-2", "prompt": "meanwhile"});
        for path in ["/v1/images/generations", "/v1/images/generations?async=1"] {
            let refused = in_time(caller.post(path, &body)).await;
            bodies.push(refused.refusal());
            assert_eq!(refused.header("retry-after"), Some("2"), "{fault:?}");
            assert_eq!(refused.header("x-should-retry"), None);
        }
        let refused = in_time(caller.get("/v1/balance")).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.header("retry-after").is_some());
        // A failure that was just found is remembered for a moment.
        let asked = Instant::now();
        while in_time(caller.get("/readyz")).await.status == 200 {
            assert!(
                asked.elapsed() < super::ANSWERED_WITHIN,
                "still reports ready"
            );
        }

        behind.proxy.set(Fault::None);
        let began = Instant::now();
        while caller.get("/readyz").await.status != 200 {
            assert!(
                began.elapsed() < Duration::from_secs(8),
                "not ready again in time"
            );
        }
        assert_eq!(caller.get("/v1/balance").await.status, 200);
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"503 {"error":{"message":"the task could not be stored","type":"server_error","code":null,"param":null,"provider":"easel"}}"#);
    behind.app.finish().await;
}

/// All connections of the pool are in use.
#[tokio::test]
async fn a_busy_pool_is_reported_as_such() {
    let app = TestApp::with(BRIEF).await;
    let caller = app.caller("1").await;
    assert_eq!(caller.get("/v1/balance").await.status, 200);
    let mut all = Vec::new();
    while let Ok(conn) = app.app.pool.acquire().await {
        all.push(conn);
    }

    let refused = in_time(caller.get("/v1/balance")).await;

    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the database is busy",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    drop(all);
    app.finish().await;
}

/// As with `max_connections`, too: SQLSTATE 53300.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_free_connections_counts_as_unreachable() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let role = database.role().await;
    let setup = Setup::new(&upstream.gateway("")).env("DATABASE_URL", &database.url_as(&role));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "1").await;
    assert_eq!(caller.generate("before").await.status, 200);

    database
        .run(&format!("ALTER ROLE {role} CONNECTION LIMIT 0"))
        .await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename =";
    database.run(&format!("{end} '{role}'")).await;

    for _ in 0..3 {
        let refused = in_time(caller.generate("meanwhile")).await;
        refused.assert_refused(503, "the task could not be stored");
        assert_eq!(refused.header("retry-after"), Some("2"));
    }
    let asked = Instant::now();
    while in_time(caller.get("/readyz")).await.status == 200 {
        assert!(
            asked.elapsed() < super::ANSWERED_WITHIN,
            "still reports ready"
        );
    }
    database
        .run(&format!("ALTER ROLE {role} CONNECTION LIMIT -1"))
        .await;
    let began = Instant::now();
    while caller.get("/readyz").await.status != 200 {
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "not ready again in time"
        );
    }
    assert_eq!(caller.generate("after").await.status, 200);
    assert_eq!(caller.balance().await["balance"], 0.6);
    gateway.end();
    database.assert_invariants().await;
}

/// Longer than a lease: all have run out when the database is back, and no worker has lost its task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_tasks_are_not_bought_again_after_an_outage() {
    let settings = format!("{BRIEF}[tasks]\nlease_ms = 1000\n");
    let behind = Behind::start(&settings).await;
    let there = format!("{settings}{}", behind.upstream.gateway(""));
    let other = behind.app.replica_behind(&behind.proxy, &there).await;
    let caller = behind.caller("2").await;
    let gates: Vec<Gate> = (0..6).map(|_| behind.upstream.hold(1)).collect();
    let requests: Vec<_> = (0..6)
        .map(|n| {
            let at = [&behind.app.url, &other.url][n % 2];
            caller.at(at).waiting(&format!("a bridge {n}"))
        })
        .collect();
    behind.upstream.wait_for(6).await;

    behind.proxy.set(Fault::BlackHole);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    behind.proxy.set(Fault::None);
    // Time enough for a replica to treat the tasks as lost.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for gate in &gates {
        gate.add_permits(1);
    }

    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(behind.upstream.calls().len(), 6);
    let attempts = "SELECT max(attempts)::bigint FROM tasks";
    assert_eq!(behind.app.database.number(attempts).await, 1);
    other.finish().await;
    behind.app.finish().await;
}

/// The task's deadline has passed, and nobody can say how it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_callers_are_answered_soon_after_the_deadline() {
    let settings = format!("{BRIEF}[tasks]\nlease_ms = 1000\ndeadline_ms = 1500\n");
    let behind = Behind::start(&settings).await;
    let caller = behind.caller("1").await;
    let _gate = behind.upstream.hold(1);
    let began = Instant::now();
    let request = caller.waiting("a bridge");
    behind.upstream.wait_for(1).await;

    behind.proxy.set(Fault::BlackHole);

    let refused = request.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the end of the task is not known yet: look it up by its id",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let id = refused.header("x-task-id").unwrap();
    behind.proxy.set(Fault::None);
    let task = loop {
        let answer = caller.get(&format!("/v1/images/tasks/{id}")).await;
        if answer.status == 200 && answer.json()["status"] != "pending" {
            break answer.json();
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{answer:?}");
    };
    assert_eq!(task["error"]["code"], "deadline_exceeded");
    behind.app.finish().await;
}
