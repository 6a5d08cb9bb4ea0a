//! Rows that another session locks: only the account that owns them waits.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use sqlx::Connection;

use super::{BRIEF, in_time};
use crate::harness::{
    TestApp, caller::Caller, database::TestDatabase, images::png, process::Setup,
    upstream::Upstream,
};

async fn lock<'a>(
    conn: &'a mut sqlx::PgConnection,
    caller: &Caller,
) -> sqlx::Transaction<'a, sqlx::Postgres> {
    let mut tx = conn.begin().await.unwrap();
    sqlx::query("SELECT FROM accounts WHERE id = $1 FOR UPDATE")
        .bind(caller.account_id)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_account_delays_no_other() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let (locked, free) = (app.caller("2").await, app.caller("10").await);
    let gate = upstream.hold(1);
    let settling = locked.waiting("to be settled meanwhile");
    upstream.wait_for(1).await;
    let mut conn = app.database.connect().await;
    let lock = lock(&mut conn, &locked).await;
    gate.add_permits(1);

    let submitting = locked.waiting("to be submitted meanwhile");
    let began = Instant::now();
    let (mut result, mut slowest) = (0, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(6) {
        let asked = Instant::now();
        let answer = free.generate("a bridge").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        slowest = slowest.max(asked.elapsed());
        result += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    assert!(slowest < Duration::from_secs(1), "{slowest:?} of {result}");
    let refused = in_time(async { submitting.await.unwrap() }).await;
    refused.assert_refused(503, "the task could not be stored");
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert!(!settling.is_finished());
    lock.rollback().await.unwrap();
    let settled = in_time(async { settling.await.unwrap() }).await;
    assert_eq!(settled.status, 200, "{settled:?}");
    assert_eq!(locked.generate("afterwards").await.status, 200);
    assert_eq!(locked.balance().await["balance"], 1.6);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_need_a_locked_table_get_an_error_in_time() {
    let app = TestApp::with(BRIEF).await;
    let caller = app.caller("1").await;
    assert_eq!(caller.get("/v1/balance").await.status, 200);
    let mut conn = app.database.connect().await;
    let mut tx = conn.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE accounts, uploads IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *tx)
        .await
        .unwrap();

    let balance = in_time(caller.get("/v1/balance")).await;
    let upload = in_time(caller.upload(png(), "a.png")).await;

    tx.rollback().await.unwrap();
    let bodies = [balance, upload].map(|answer| answer.refusal());
    assert_snapshot!(bodies.join("\n"), @r#"
    503 {"error":{"message":"the database did not answer","type":"server_error","code":null,"param":null,"provider":"easel"}}
    503 {"error":{"message":"failed to upload image","type":"server_error","code":null,"param":"file","provider":"easel"}}
    "#);
    app.finish().await;
}

/// Whatever locks it holds when it is paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_replica_delays_others_for_seconds_only() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let setup = Setup::on(&database, &upstream.gateway(""));
    let (paused, other) = (
        setup.serve(),
        Setup::on(&database, &upstream.gateway("")).serve(),
    );
    let here = database.caller(&paused.url(), "100").await;
    let there = here.at(&other.url());
    for round in 0..4 {
        let load: Vec<_> = (0..8)
            .map(|n| here.waiting(&format!("round {round}, image {n}")))
            .collect();
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..40))).await;
        paused.signal("STOP");
        let answer = in_time(there.generate(&format!("round {round}, elsewhere"))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        paused.signal("CONT");
        for request in load {
            let answer = request.await.unwrap();
            assert!(matches!(answer.status, 200 | 503), "{answer:?}");
        }
    }
    database.wait_for_all().await;
    paused.end();
    other.end();
    database.assert_invariants().await;
}
