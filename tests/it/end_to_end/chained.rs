//! Two gateways in a chain, as processes: images that the rear one generates are delivered and charged by the front
//! one, once on each side, whichever of them is killed.

use std::{net::TcpListener, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    caller::Caller,
    database::TestDatabase,
    images,
    process::{Process, Setup},
};

/// The rear gateway, which generates; it keeps its port when it is restarted.
struct Back {
    database: TestDatabase,
    setup: Setup,
    listen: String,
    /// The front gateway's account at the rear one.
    account: Caller,
}

impl Back {
    async fn new(delay_ms: u32) -> Self {
        let database = TestDatabase::create().await;
        let settings = format!(
            "[tasks]\nlease_ms = 1000\n[backends.demo]\nkind = \"demo\"\ndelay_ms = {delay_ms}\n"
        );
        let setup = Setup::on(&database, &settings);
        // Free now, and bound again soon.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap().to_string();
        let account = database.caller(&format!("http://{listen}"), "10").await;
        Self {
            database,
            setup,
            listen,
            account,
        }
    }

    fn serve(&self) -> Process {
        let process = self.setup.spawn(&["serve", "--listen", &self.listen]);
        process.wait_ready();
        process
    }

    /// The settings of the front gateway.
    fn front(&self, database: &TestDatabase) -> Setup {
        let (listen, key) = (&self.listen, &self.account.key);
        let settings = format!(
            "[tasks]\nlease_ms = 1000\n[models.gpt-image-2]\nroutes = [\"back\"]\n\
             [backends.back]\nkind = \"async_job\"\nprofile = \"easel\"\n\
             base_url = \"http://{listen}/v1\"\napi_key = \"{key}\"\npoll_interval_ms = 50\n"
        );
        Setup::on(database, &settings)
    }

    /// Ends both gateways; asserts that this many tasks were generated, and each was charged on both sides.
    async fn end(&self, front: &TestDatabase, gateways: [Process; 2], tasks: u32) {
        let count = self.database.number("SELECT count(*) FROM tasks");
        assert_eq!(
            count.await,
            i64::from(tasks),
            "each task must be bought once"
        );
        for database in [&self.database, front] {
            assert_eq!(captured(database).await, i64::from(tasks) * 200_000);
        }
        for gateway in gateways {
            gateway.end();
        }
        self.database.assert_invariants().await;
        front.assert_invariants().await;
    }
}

async fn captured(database: &TestDatabase) -> i64 {
    let captured =
        "SELECT COALESCE(-sum(balance_change), 0)::bigint FROM entries WHERE kind = 'capture'";
    database.number(captured).await
}

async fn edit(caller: &Caller) -> Value {
    let upload = caller.upload(images::png(), "bird.png").await.json();
    json!({"model": "gpt-image-2", "prompt": "the same at night", "size": "16:9",
        "image_urls": [upload["url"]]})
}

/// The image of a completed task.
async fn image(caller: &Caller, task: &Value) -> Vec<u8> {
    assert_eq!(
        (&task["status"], &task["cost"]),
        (&json!("completed"), &json!(0.2)),
        "{task}"
    );
    // The link outlives the process that issued it.
    let link = task["result_url"].as_str().unwrap();
    let path = &link[link.find("/v1/").unwrap()..];
    let leads_to = caller.get(path).await;
    let stored = leads_to.header("location").unwrap();
    let stored = &stored[stored.find("/f/").unwrap()..];
    let got = caller.get(stored).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.body
}

#[tokio::test]
async fn a_reference_passes_both_gateways_and_both_charge() {
    let (back, database) = (Back::new(0).await, TestDatabase::create().await);
    let (rear, front) = (back.serve(), back.front(&database));
    let front = front.serve();
    let caller = database.caller(&front.url(), "1").await;

    let task = caller.submit(&edit(&caller).await).await;
    let task = caller.wait_for(&task).await;

    let image = image(&caller, &task).await;
    assert_eq!(images::size_of(&image), (1536, 864));
    let references = "SELECT jsonb_array_length(request->'references')::bigint FROM tasks";
    assert_eq!(back.database.number(references).await, 1);
    assert_eq!(back.account.balance().await["balance"], 9.8);
    back.end(&database, [front, rear], 1).await;
}

#[tokio::test]
async fn the_rear_gateway_is_killed_midway() {
    let (back, database) = (Back::new(1_500).await, TestDatabase::create().await);
    let (rear, front) = (back.serve(), back.front(&database).serve());
    let caller = database.caller(&front.url(), "1").await;
    let task = caller.submit(&edit(&caller).await).await;
    back.database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'running'", 1)
        .await;

    rear.kill();
    // Long enough for several polls to fail.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rear = back.serve();

    let task = caller.wait_for(&task).await;
    image(&caller, &task).await;
    back.end(&database, [front, rear], 1).await;
}

#[tokio::test]
async fn the_front_gateway_is_killed_midway() {
    let (back, database) = (Back::new(1_500).await, TestDatabase::create().await);
    let (rear, setup) = (back.serve(), back.front(&database));
    let front = setup.serve();
    let caller = database.caller(&front.url(), "1").await;
    let task = caller.submit(&edit(&caller).await).await;
    back.database
        .wait_for("SELECT count(*) FROM tasks WHERE status = 'running'", 1)
        .await;

    front.kill();
    let front = setup.serve();

    let caller = caller.at(&front.url());
    let task = caller.wait_for(&task).await;
    image(&caller, &task).await;
    back.end(&database, [front, rear], 1).await;
}

/// Before the rear gateway sees the task, while it answers, and after.
#[tokio::test]
async fn the_front_gateway_is_killed_at_any_moment() {
    const TASKS: u32 = 6;
    let (back, database) = (Back::new(700).await, TestDatabase::create().await);
    let (rear, setup) = (back.serve(), back.front(&database));
    let front = setup.serve();
    let caller = database.caller(&front.url(), "10").await;
    let body = edit(&caller).await;
    let mut tasks = Vec::new();
    for gap in 0..TASKS {
        tasks.push(caller.submit(&body).await);
        tokio::time::sleep(Duration::from_millis((7 * gap).into())).await;
    }

    front.kill();
    let front = setup.serve();

    let caller = caller.at(&front.url());
    for task in &tasks {
        let task = caller.wait_for(task).await;
        image(&caller, &task).await;
    }
    back.end(&database, [front, rear], TASKS).await;
}
