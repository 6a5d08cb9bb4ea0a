//! Connections that go silent without being closed, as with a NAT or a load balancer that drops its state.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use super::{Behind, in_time, listening_pid};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_continue_over_new_connections() {
    let behind = Behind::start("").await;
    let caller = behind.caller("10").await;
    // All connections are open by now.
    let before = (0..20).map(|n| {
        let caller = caller.clone();
        async move {
            let body = json!({"model": "gpt-image-2", "prompt": n.to_string()});
            caller.submit(&body).await
        }
    });
    join_all(before).await;
    behind.app.database.wait_for_all().await;

    behind.proxy.freeze();

    let result = in_time(caller.generate("a bridge")).await;
    assert_eq!(result.status, 200, "{result:?}");
    let asked = (0..10).map(|n| {
        let (caller, prompt) = (caller.clone(), format!("after {n}"));
        async move { in_time(caller.generate(&prompt)).await }
    });
    for answer in join_all(asked).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(caller.get("/readyz").await.status, 200);
    assert_eq!(behind.upstream.calls().len(), 31);
    behind.app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_tasks_are_settled_and_reported_meanwhile() {
    let behind = Behind::start(super::BRIEF).await;
    let caller = behind.caller("1").await;
    let gate = behind.upstream.hold(1);
    let request = caller.waiting("a bridge");
    behind.upstream.wait_for(1).await;

    behind.proxy.freeze();
    gate.add_permits(1);

    let answer = in_time(async { request.await.unwrap() }).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(behind.upstream.calls().len(), 1);
    assert_eq!(caller.balance().await["balance"], 0.8);
    behind.app.finish().await;
}

/// The answer to COMMIT is lost, on a connection that stays open. The first request of a process is accepted in a
/// transaction, later ones by a statement alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_one_task_and_one_hold() {
    for (earlier, statement) in [(0, "COMMIT"), (1, "%WITH patience%")] {
        let behind = Behind::start("[database]\ntransaction_timeout_ms = 2000\n").await;
        let caller = behind.caller("1").await;
        for _ in 0..earlier {
            assert_eq!(caller.generate("before").await.status, 200);
        }
        let mut conn = behind.app.database.connect().await;
        sqlx::raw_sql(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER commits_slowly AFTER INSERT ON open_tasks
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
        .execute(&mut conn)
        .await
        .unwrap();

        let request = caller.waiting("a bridge");
        let committing: &'static str = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND wait_event = 'PgSleep' AND query LIKE '{statement}'"
        )
        .leak();
        behind.app.database.wait_for(committing, 1).await;
        behind.proxy.freeze();

        let answer = in_time(async { request.await.unwrap() }).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let tasks = "SELECT count(*) FROM tasks";
        assert_eq!(behind.app.database.number(tasks).await, earlier + 1);
        let calls = i64::try_from(behind.upstream.calls().len()).unwrap();
        assert_eq!(calls, earlier + 1);
        let spent = caller.balance().await["used_balance"].clone();
        assert_eq!(spent, [0.2, 0.4][usize::from(earlier > 0)]);
        behind.app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_of_other_replicas_arrive_again() {
    let behind = Behind::start("[tasks]\nrunning_max = 1\n").await;
    let caller = behind.caller("1").await;
    let listener = listening_pid(&behind.app.database).await;
    let opened = behind.proxy.opened();

    behind.proxy.freeze();

    while listening_pid(&behind.app.database).await == listener {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(behind.proxy.opened() > opened);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(caller.generate("a bridge").await.status, 200);
    behind.app.finish().await;
}
