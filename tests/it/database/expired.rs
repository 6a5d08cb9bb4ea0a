//! Tasks past their deadline end: all of them, soon, whatever their lease says and whatever they request.

use std::time::{Duration, Instant};

use crate::harness::{TestApp, caller::Caller, upstream::Upstream};

/// Inserts open tasks of one image each, with their holds; `late` is how long ago their deadline was.
pub(super) async fn insert(app: &TestApp, caller: &Caller, count: i32, status: &str, late: &str) {
    let mut conn = app.database.connect().await;
    sqlx::query(
        "WITH new AS (
             INSERT INTO open_tasks (id, account_id, api_key_id, status, model, quality, resolution, ratio, requirements,
                 request, n, unit_price, fingerprint, file_id, deadline_at, attempts, fence, lease_until)
             SELECT gen_random_uuid(), $1, $2, $3, 'gpt-image-2', 'medium', '1k', '1:1', 0,
                 CASE WHEN i = 1 THEN '{}'::jsonb
                     ELSE '{\"model\": \"gpt-image-2\", \"prompt\": \"late\", \"n\": 1, \"quality\": \"medium\", \"resolution\": \"1k\", \"ratio\": \"1:1\", \"size\": \"1024x1024\"}'::jsonb END,
                 1, 200000, '', gen_random_uuid(), now() - $4::interval, 1, 1,
                 CASE WHEN $3 = 'running' THEN now() + interval '1 hour' END
             FROM generate_series(1, $5) AS i
         )
         UPDATE accounts SET held = held + 200000 * $5::bigint WHERE id = $1",
    )
    .bind(caller.account_id)
    .bind(caller.key_id)
    .bind(status)
    .bind(late)
    .bind(count)
    .execute(&mut conn)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_expired_tasks_end_in_seconds_even_an_unreadable_one() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let replica = app.replica(&upstream.gateway("")).await;
    let (many, few) = (app.caller("1000").await, app.caller("1").await);
    insert(&app, &many, 5_000, "queued", "1 second").await;
    let began = Instant::now();

    app.database
        .wait_for("SELECT count(*) FROM tasks WHERE status <> 'failed'", 0)
        .await;

    let took = began.elapsed();
    crate::harness::say(&format!("5,000 expired tasks ended in {took:?}"));
    assert!(took < Duration::from_secs(15), "{took:?}");
    let expired = "SELECT count(*) FROM tasks WHERE failure->>'kind' = 'deadline' AND cost = 0";
    assert_eq!(app.database.number(expired).await, 5_000);
    assert_eq!(many.balance().await["held"], 0.0);
    assert_eq!(few.generate("a bridge").await.status, 200);
    assert_eq!(upstream.calls().len(), 1);
    replica.finish().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_task_expires_although_its_lease_is_valid() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    insert(&app, &caller, 2, "running", "10 seconds").await;

    app.database
        .wait_for("SELECT count(*) FROM tasks WHERE status <> 'failed'", 0)
        .await;

    assert_eq!(caller.balance().await["held"], 0.0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_account_delays_only_its_own_tasks() {
    let app = TestApp::start().await;
    let (locked, free) = (app.caller("100").await, app.caller("100").await);
    let mut conn = app.database.connect().await;
    insert(&app, &free, 1, "running", "-1 hours").await;
    insert(&app, &locked, 300, "running", "-1 hours").await;
    let mut tx = sqlx::Connection::begin(&mut conn).await.unwrap();
    sqlx::query("SELECT FROM accounts WHERE id = $1 FOR UPDATE")
        .bind(locked.account_id)
        .execute(&mut *tx)
        .await
        .unwrap();
    let mut other = app.database.connect().await;
    sqlx::query("UPDATE open_tasks SET deadline_at = now() - interval '1 minute'")
        .execute(&mut other)
        .await
        .unwrap();

    app.database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'failed'", 1)
        .await;

    assert_eq!(free.balance().await["held"], 0.0);
    tx.rollback().await.unwrap();
    app.database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'failed'", 301)
        .await;
    app.finish().await;
}
