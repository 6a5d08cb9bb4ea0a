//! Gateways on one database whose configurations differ for a while, as when they are reloaded one after the other.

use serde_json::{Value, json};

use crate::harness::{database::TestDatabase, process::Setup, upstream::Upstream};

/// Settings of a gateway that knows one model and runs one task at a time.
fn knows(model: &str, upstream: &Upstream) -> String {
    format!(
        "[tasks]\nrunning_max = 1\nlease_ms = 1000\n[backends.up]\n{}[models.{model}]\nroutes = ['up']\n",
        upstream.settings("")
    )
}

fn body(model: &str) -> Value {
    json!({"model": model, "prompt": "a bridge"})
}

#[tokio::test]
async fn a_task_of_a_model_that_one_gateway_does_not_know_is_left_to_the_others() {
    let database = TestDatabase::create().await;
    let (of_old, of_new) = (Upstream::start().await, Upstream::start().await);
    let older = Setup::on(&database, &knows("old", &of_old)).serve();
    let newer = Setup::on(&database, &knows("new", &of_new)).serve();
    let caller = database.caller(&older.url(), "10").await;
    let caller_of_newer = caller.at(&newer.url());
    let gate = of_old.hold(2);
    let running = caller.submit(&body("old")).await;
    of_old.wait_for(1).await;
    let queued = caller.submit(&body("old")).await;

    // The newer gateway claims past the task that it does not know.
    let known = caller_of_newer.submit(&body("new")).await;
    assert_eq!(
        caller_of_newer.wait_for(&known).await["status"],
        "completed"
    );
    gate.add_permits(2);
    assert_eq!(caller.wait_for(&running).await["status"], "completed");
    assert_eq!(caller.wait_for(&queued).await["status"], "completed");

    // Once no other gateway is there, nobody can know the model.
    let gate = of_old.hold(1);
    let lost = caller.submit(&body("old")).await;
    of_old.wait_for(3).await;
    let orphan = caller.submit(&body("old")).await;
    older.kill();
    drop(gate);
    for task in [lost, orphan] {
        let failed = caller_of_newer.wait_for(&task).await;
        assert_eq!(failed["status"], "failed", "{failed}");
        assert_eq!(
            failed["fail_reason"], "the model is no longer configured",
            "{failed}"
        );
    }
    newer.end();
    database.assert_invariants().await;
}
