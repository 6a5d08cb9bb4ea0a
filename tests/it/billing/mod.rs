//! Money as clients see it: never a fen too much or too little, however many requests arrive at once.

mod archive;
mod keys;
mod ledger_checks;
mod months;

use std::time::Duration;

use easel::{billing::ledger, money::Cny};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    TestApp,
    account::Account,
    caller::{Answer, Caller},
    upstream::{Reply, Upstream, image},
};

const GENERATE: &str = "/v1/images/generations";
const ASYNC: &str = "/v1/images/generations?async=1";
/// How long a slow upstream takes, so that others overtake it.
const SLOW: Duration = Duration::from_millis(1500);

fn body(prompt: &str, more: &Value) -> Value {
    let mut body = json!({"model": "gpt-image-2", "prompt": prompt});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn slow() -> Reply {
    Reply::images(&[image(16, 16, 0)]).after(SLOW)
}

fn cny(text: &str) -> Cny {
    text.parse().unwrap()
}

async fn submit(caller: &Caller, more: &Value) -> Answer {
    caller.post(ASYNC, &body("a coin", more)).await
}

/// Submits a request that must be accepted, and returns its task's id.
async fn accepted(caller: &Caller, more: &Value) -> String {
    let ticket = submit(caller, more).await;
    assert_eq!(ticket.status, 202, "{ticket:?}");
    ticket.json()["task_id"].as_str().unwrap().to_owned()
}

async fn top_up(app: &TestApp, caller: &Caller, amount: &str) -> sqlx::Result<Option<Cny>> {
    let mut conn = app.database.connect().await;
    ledger::top_up(&mut conn, caller.account_id, cny(amount)).await
}

async fn tasks_of(app: &TestApp, caller: &Caller) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM tasks WHERE account_id = $1")
        .bind(caller.account_id)
        .fetch_one(&mut app.database.connect().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hundred_at_once_exactly_the_affordable_ones_succeed() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let replica = app.replica(&upstream.gateway("")).await;
    let caller = app.caller("1.00").await;
    let there = caller.at(&replica.url);

    let asked = (0..200).map(|index| {
        let caller = if index % 2 == 0 { &caller } else { &there };
        let path = if index % 4 < 2 { GENERATE } else { ASYNC };
        async move { caller.post(path, &body("a coin", &json!({}))).await }
    });
    let answers = join_all(asked).await;

    let (good, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status < 300);
    assert_eq!((good.len(), refused.len()), (5, 195));
    for answer in &refused {
        assert_eq!(answer.status, 402, "{answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "payment_required");
        assert_eq!(error["code"], "insufficient_balance");
    }
    for answer in &good {
        let task = caller.wait_for(answer.json()["id"].as_str().unwrap()).await;
        assert_eq!(
            (&task["status"], &task["cost"]),
            (&json!("completed"), &json!(0.2))
        );
    }
    let balance = caller.balance().await;
    assert_eq!(
        (&balance["balance"], &balance["held"]),
        (&json!(0.0), &json!(0.0))
    );
    assert_eq!(upstream.calls().len(), 5);
    replica.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn refusals_for_money_name_the_shortfall() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("0.50").await;
    let refused = submit(&caller, &json!({"n": 3})).await;
    assert_eq!(refused.status, 402);
    insta::assert_json_snapshot!(refused.json(), @r#"
    {
      "error": {
        "code": "insufficient_balance",
        "message": "balance too low: this costs 0.60 CNY and 0.50 CNY is available",
        "param": null,
        "provider": "easel",
        "type": "payment_required"
      }
    }
    "#);
    let limited = app
        .create(Account::with("9.00").monthly_quota("0.50"))
        .await;
    let refused = submit(&limited, &json!({"n": 3})).await;
    assert_eq!(refused.status, 402);
    insta::assert_json_snapshot!(refused.json(), @r#"
    {
      "error": {
        "code": "quota_exceeded",
        "message": "monthly quota used up: this costs 0.60 CNY and 0.50 CNY of 0.50 CNY is left this month",
        "param": null,
        "provider": "easel",
        "type": "payment_required"
      }
    }
    "#);
    assert_eq!(
        tasks_of(&app, &caller).await + tasks_of(&app, &limited).await,
        0
    );
    app.finish().await;
}

#[tokio::test]
async fn a_balance_can_be_changed_while_part_of_it_is_held() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("0.20").await;
    upstream.next(slow());
    let task = accepted(&caller, &json!({})).await;
    assert_eq!(caller.balance().await["available"], 0.0);

    assert_eq!(
        top_up(&app, &caller, "0.30").await.unwrap(),
        Some(cny("0.50"))
    );
    assert_eq!(caller.balance().await["available"], 0.3);
    let too_much = top_up(&app, &caller, "-0.300001").await.unwrap_err();
    let constraint = too_much.as_database_error().unwrap().constraint();
    assert_eq!(constraint, Some("accounts_held_check"));
    assert_eq!(
        top_up(&app, &caller, "-0.30").await.unwrap(),
        Some(cny("0.20"))
    );
    let overflow = top_up(&app, &caller, "9223372036854.775807").await;
    assert!(overflow.is_err(), "{overflow:?}");

    assert_eq!(caller.wait_for(&task).await["cost"], 0.2);
    let balance = caller.balance().await;
    assert_eq!(
        (&balance["balance"], &balance["held"]),
        (&json!(0.0), &json!(0.0))
    );
    app.finish().await;
}

#[tokio::test]
async fn a_price_is_fixed_when_the_request_is_accepted() {
    let upstream = Upstream::start().await;
    // One slot only, so that the rest is left to the replica.
    let narrow = format!("{}[tasks]\nrunning_max = 1\n", upstream.gateway(""));
    let app = TestApp::with(&narrow).await;
    let caller = app.caller("9.00").await;
    upstream.next(slow());
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(accepted(&caller, &json!({})).await);
    }
    let dear = app
        .replica(&upstream.gateway("price_medium = \"0.50\""))
        .await;
    for task in &tasks {
        assert_eq!(caller.wait_for(task).await["cost"], 0.2);
    }
    let now = accepted(&caller.at(&dear.url), &json!({})).await;
    assert_eq!(caller.wait_for(&now).await["cost"], 0.5);
    let balance = caller.balance().await;
    assert_eq!(
        (&balance["balance"], &balance["used_balance"]),
        (&json!(7.7), &json!(1.3))
    );
    dear.finish().await;
    app.finish().await;
}

#[tokio::test]
async fn each_quality_and_number_is_charged_to_the_fen() {
    let upstream = Upstream::start().await;
    let prices = "price_low = \"0.07\"\nprice_medium = \"0.13\"\nprice_high = \"0.000001\"";
    let app = TestApp::with(&upstream.gateway(prices)).await;
    let caller = app.caller("5.00").await;
    let (mut left, mut spent) = (5_000_000, 0);
    for (more, micros) in [
        (json!({"quality": "low"}), 70_000),
        (json!({"quality": "medium"}), 130_000),
        (json!({"quality": "auto"}), 130_000),
        (json!({}), 130_000),
        (json!({"quality": "standard"}), 130_000),
        (json!({"quality": "high"}), 1),
        (json!({"quality": "hd"}), 1),
        (json!({"quality": "low", "n": 3}), 210_000),
        (json!({"quality": "high", "n": 10}), 10),
    ] {
        let cost = serde_json::to_value(Cny::from_micros(micros)).unwrap();
        let task = accepted(&caller, &more).await;
        let task = caller.wait_for(&task).await;
        assert_eq!(
            (&task["status"], &task["cost"]),
            (&json!("completed"), &cost),
            "{more}"
        );
        let n = more.get("n").and_then(Value::as_u64).unwrap_or(1);
        assert_eq!(task["data"].as_array().unwrap().len() as u64, n);
        left -= micros;
        spent += micros;
        let balance = caller.balance().await;
        for (name, micros) in [
            ("balance", left),
            ("used_balance", spent),
            ("month_spend", spent),
        ] {
            let amount = serde_json::to_value(Cny::from_micros(micros)).unwrap();
            assert_eq!(balance[name], amount, "{name} after {more}");
        }
        let usage = caller.get("/v1/usage?limit=1").await.json();
        let record = &usage["data"][0];
        assert_eq!(
            (&record["task_id"], &record["cost"]),
            (&task["id"], &cost),
            "{more}"
        );
        assert_eq!(record["cost_breakdown"]["image_count"], n);
    }
    app.finish().await;
}

#[tokio::test]
async fn undelivered_images_cost_nothing() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1.00").await;
    upstream.next(Reply::error(400, "moderation_blocked", "not generated"));
    let task = accepted(&caller, &json!({"n": 2})).await;
    let task = caller.wait_for(&task).await;
    assert_eq!(task["status"], "failed");
    assert_eq!(task["cost"].as_f64(), Some(0.0));
    assert_eq!(caller.balance().await["available"], 1.0);
    let usage = caller.get("/v1/usage").await.json();
    assert_eq!(usage["data"][0]["status"], "failed");
    assert_eq!(usage["data"][0]["cost"].as_f64(), Some(0.0));

    upstream.next(Reply::images(&[
        image(16, 16, 0),
        image(16, 16, 1),
        image(16, 16, 2),
    ]));
    let task = accepted(&caller, &json!({"n": 4})).await;
    assert_eq!(caller.wait_for(&task).await["cost"], 0.6);
    assert_eq!(caller.balance().await["balance"], 0.4);
    app.finish().await;
}

#[tokio::test]
async fn an_option_that_cannot_be_stored_costs_nobody_a_task() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1.00").await;
    for more in [
        json!({"user": "a\u{0}b"}),
        json!({"extra": [{"deep": "\u{0}"}]}),
        json!({"na\u{0}me": true}),
    ] {
        let task = accepted(&caller, &more).await;
        assert_eq!(caller.wait_for(&task).await["cost"], 0.2, "{more}");
    }
    app.finish().await;
}
