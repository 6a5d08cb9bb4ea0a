//! A database that cannot be reached at all for a while: clients are told so in time, and afterwards everything
//! goes on where it was.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{BRIEF, Behind, hold, in_time, waiting};
use crate::harness::{
    database::TestDatabase,
    fault_proxy::Fault,
    process::Setup,
    upstream::{Gate, Upstream},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_within_five_seconds_and_may_come_again() {
    let behind = Behind::start("").await;
    let caller = behind.caller("1").await;
    assert_eq!(caller.generate("before").await.status, 200);
    for fault in [Fault::BlackHole, Fault::Reset] {
        behind.proxy.set(fault);
        let body = json!({"model": "gpt-image-2", "prompt": "meanwhile"});
        for path in ["/v1/images/generations", "/v1/images/generations?async=1"] {
            let told = in_time(caller.post(path, &body)).await;
            told.assert_refused(503, "the task could not be stored");
            assert_eq!(told.header("retry-after"), Some("2"), "{fault:?}");
            assert_eq!(told.header("x-should-retry"), None);
        }
        let told = in_time(caller.get("/v1/balance")).await;
        assert_eq!(told.status, 503, "{told:?}");
        assert!(told.header("retry-after").is_some());
        // What was found out just before counts for a moment.
        let asked = Instant::now();
        while in_time(caller.get("/readyz")).await.status == 200 {
            assert!(asked.elapsed() < super::TOLD_WITHIN, "ready, it says");
        }

        behind.proxy.set(Fault::None);
        let began = Instant::now();
        while caller.get("/readyz").await.status != 200 {
            assert!(began.elapsed() < Duration::from_secs(8), "ready again soon");
        }
        assert_eq!(caller.get("/v1/balance").await.status, 200);
    }
    behind.app.finish().await;
}

/// As `max_connections` has it, too: SQLSTATE 53300.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_without_a_free_connection_is_told_as_one_that_is_away() {
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
        let told = in_time(caller.generate("meanwhile")).await;
        told.assert_refused(503, "the task could not be stored");
        assert_eq!(told.header("retry-after"), Some("2"));
    }
    let asked = Instant::now();
    while in_time(caller.get("/readyz")).await.status == 200 {
        assert!(asked.elapsed() < super::TOLD_WITHIN, "ready, it says");
    }
    database
        .run(&format!("ALTER ROLE {role} CONNECTION LIMIT -1"))
        .await;
    let began = Instant::now();
    while caller.get("/readyz").await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(8), "ready again soon");
    }
    assert_eq!(caller.generate("after").await.status, 200);
    assert_eq!(caller.balance().await["balance"], 0.6);
    gateway.end();
    database.assert_at_rest().await;
}

/// Longer than a lease: all have run out when it is back, and nobody has lost its task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_replicas_run_is_not_bought_again_when_it_is_back() {
    let settings = format!("{BRIEF}[tasks]\nlease_ms = 1000\n");
    let behind = Behind::start(&settings).await;
    let there = format!("{settings}{}", behind.upstream.gateway(""));
    let other = behind.app.replica_behind(&behind.proxy, &there).await;
    let caller = behind.caller("2").await;
    let gates: Vec<Gate> = (0..6).map(|_| hold(&behind.upstream)).collect();
    let requests: Vec<_> = (0..6)
        .map(|n| {
            let at = [&behind.app.url, &other.url][n % 2];
            waiting(&caller.at(at), &format!("a bridge {n}"))
        })
        .collect();
    behind.upstream.wait_for(6).await;

    behind.proxy.set(Fault::BlackHole);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    behind.proxy.set(Fault::None);
    // Time enough for whoever would take them for lost.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for gate in &gates {
        gate.add_permits(1);
    }

    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(behind.upstream.received().len(), 6);
    let attempts = "SELECT max(attempts)::bigint FROM tasks";
    assert_eq!(behind.app.database.number(attempts).await, 1);
    other.finish().await;
    behind.app.finish().await;
}

/// The task's deadline is over, and nobody can say how it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_soon_after_the_deadline() {
    let settings = format!("{BRIEF}[tasks]\nlease_ms = 1000\ndeadline_ms = 1500\n");
    let behind = Behind::start(&settings).await;
    let caller = behind.caller("1").await;
    let _gate = hold(&behind.upstream);
    let began = Instant::now();
    let request = waiting(&caller, "a bridge");
    behind.upstream.wait_for(1).await;

    behind.proxy.set(Fault::BlackHole);

    let told = request.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    told.assert_refused(
        503,
        "the end of the task is not known yet: look it up by its id",
    );
    assert_eq!(told.header("x-should-retry"), Some("false"));
    let id = told.header("x-task-id").unwrap();
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
