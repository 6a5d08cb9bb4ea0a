//! Images whose worker was lost after they were stored: they are delivered, and no upstream generates them again.
//! Images that no task adopts are deleted.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{accepted, generated_by, left};
use crate::harness::{
    TestApp,
    caller::Caller,
    database::TestDatabase,
    process::{Process, Setup},
    upstream::{Call, Gate, Reply, Upstream, closed_gate, image},
};

const WAITS_TO_SETTLE: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
     AND wait_event_type = 'Lock' AND query LIKE '%ending AS%'";

/// Lets a task be generated and stored, and kills its worker before it can settle.
async fn lose_the_worker(
    database: &TestDatabase,
    gateway: &Process,
    gate: &Gate,
    begun: impl Future<Output = ()>,
) {
    begun.await;
    // Nobody can settle the task while its row is locked.
    let mut conn = database.connect().await;
    let mut lock = sqlx::Connection::begin(&mut conn).await.unwrap();
    let locked = sqlx::query("SELECT FROM open_tasks FOR UPDATE").execute(&mut *lock);
    locked.await.unwrap();
    gate.add_permits(10);
    database.wait_for(WAITS_TO_SETTLE, 1).await;
    gateway.kill();
    // Its statement would still be executed.
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%ending AS%'";
    assert_eq!(database.number(ended).await, 1);
    database.wait_for(WAITS_TO_SETTLE, 0).await;
    lock.rollback().await.unwrap();
}

fn stored_images(data_dir: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(data_dir.join("objects/images"));
    let folders = folders
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
    files.map(|entry| entry.unwrap().path()).collect()
}

async fn bytes_of(caller: &Caller, link: &serde_json::Value) -> Vec<u8> {
    let redirect = caller.get(link.as_str().unwrap()).await;
    caller.get(redirect.header("location").unwrap()).await.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_storing_and_settling_has_its_images_adopted() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000");
    let setup = Setup::on(&database, &settings);
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "1").await;
    let gate = upstream.hold(1);
    let id = accepted(&caller, "a bridge").await;
    lose_the_worker(&database, &gateway, &gate, upstream.wait_for(1)).await;

    let gateway = setup.serve();

    let caller = caller.at(&gateway.url());
    let task = caller.wait_for(&id).await;
    assert_eq!(task["status"], "completed");
    assert_eq!(bytes_of(&caller, &task["url"]).await, image(3, 2, 0));
    assert_eq!(upstream.calls().len(), 1, "bought twice");
    assert_eq!(stored_images(&setup.data_dir()).len(), 1);
    assert_eq!(left(&caller).await, 0.8);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_images_that_were_not_stored_are_bought_again() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let settings = generated_by(&upstream, "[tasks]\nlease_ms = 1000");
    let setup = Setup::on(&database, &settings);
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "1").await;
    // The upstream returns two of three images.
    let gate = closed_gate();
    let two = [image(3, 2, 1), image(3, 2, 2)];
    upstream.next(Reply::images(&two).held_by(&gate));
    let three = json!({"model": "gpt-image-2", "prompt": "three", "n": 3});
    let id = caller.submit(&three).await;
    lose_the_worker(&database, &gateway, &gate, upstream.wait_for(1)).await;
    upstream.next(Reply::images(&[image(3, 2, 3)]));

    let gateway = setup.serve();

    let caller = caller.at(&gateway.url());
    let task = caller.wait_for(&id).await;
    assert_eq!(task["status"], "completed");
    let calls = upstream.calls();
    assert_eq!(
        calls.iter().map(Call::n).collect::<Vec<_>>(),
        [Some(3), Some(1)]
    );
    for (index, shade) in (1..=3).enumerate() {
        let bytes = bytes_of(&caller, &task["data"][index]["url"]).await;
        assert_eq!(bytes, image(3, 2, shade), "image {index}");
    }
    assert_eq!(left(&caller).await, 0.4);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn only_unreferenced_objects_are_swept() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&generated_by(&upstream, "")).await;
    let caller = app.caller("2").await;
    let data_dir = &app.app.config.data_dir;
    let mut ids = Vec::new();
    for prompt in ["whole", "lost", "failed"] {
        let id = accepted(&caller, prompt).await;
        assert_eq!(caller.wait_for(&id).await["status"], "completed");
        ids.push(id);
    }
    // Files as lost attempts leave them: beside the delivered ones, and of a task that had failed by then.
    let file = |id: &str, fence: i64| {
        let key =
            easel::storage::Key::image(id.parse().unwrap(), fence, 1, easel::image::Format::Png);
        data_dir.join("objects").join(key.as_str())
    };
    for (id, fence) in [(&ids[0], 7), (&ids[1], 7), (&ids[1], 9)] {
        std::fs::copy(file(id, 1), file(id, fence)).unwrap();
    }
    let mut conn = app.database.connect().await;
    let mut run = async |id: &str, change: &'static str| {
        let id: uuid::Uuid = id.parse().unwrap();
        let done = sqlx::query(change).bind(id).execute(&mut conn).await;
        assert_eq!(done.unwrap().rows_affected(), 1, "{change}");
    };
    let late = "INSERT INTO unswept_tasks VALUES ($1, now() - interval '1 hour')";
    run(&ids[1], "INSERT INTO unswept_tasks VALUES ($1, now())").await;
    let sweep = async || easel::images::sweep::sweep_images(&app.app).await.unwrap();
    assert_eq!(sweep().await, 0, "a worker may still write");
    run(&ids[1], "DELETE FROM unswept_tasks WHERE task_id = $1").await;
    run(&ids[1], late).await;

    assert_eq!(sweep().await, 2);

    let exists = |id: usize, fence| file(&ids[id], fence).exists();
    assert!(
        exists(0, 1) && exists(1, 1) && exists(2, 1),
        "delivered images are gone"
    );
    assert!(!exists(1, 7) && !exists(1, 9));
    assert!(exists(0, 7), "a task that was begun once is not looked at");
    assert_eq!(sweep().await, 0);
    // One that failed by our fault, or too late, keeps nothing.
    run(
        &ids[2],
        "UPDATE task_history SET status = 'failed', images = NULL, cost = 0,
             failure = '{\"kind\": \"deadline\", \"message\": \"late\"}' WHERE id = $1",
    )
    .await;
    run(&ids[2], late).await;
    assert_eq!(sweep().await, 1);
    assert!(!exists(2, 1));
    // Its hold was captured, so the task must not stay failed.
    run(
        &ids[2],
        "UPDATE task_history SET status = 'completed', images = '[{}]', cost = 200000, failure = NULL WHERE id = $1",
    )
    .await;
    app.finish().await;
}
