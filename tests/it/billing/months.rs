//! Monthly quotas: exact, also across the end of a month.

use serde_json::json;

use super::{accepted, slow, submit};
use crate::harness::{TestApp, account::Account, caller::Caller, upstream::Upstream};

/// Moves the recorded spend of an account to another month.
async fn shift_month(app: &TestApp, caller: &Caller, by: &str) {
    let done = sqlx::query(
        "UPDATE accounts SET month = (date_trunc('month', now() AT TIME ZONE 'Asia/Shanghai')
             + $2::interval)::date WHERE id = $1",
    )
    .bind(caller.account_id)
    .bind(by)
    .execute(&mut app.database.connect().await)
    .await
    .unwrap();
    assert_eq!(done.rows_affected(), 1);
}

#[tokio::test]
async fn the_quota_is_exact_while_holding_and_over_the_end_of_a_month() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app
        .create(Account::with("9.00").monthly_quota("0.60"))
        .await;
    for _ in 0..3 {
        upstream.next(slow());
    }
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(accepted(&caller, &json!({})).await);
    }
    // A hold counts as spent, whatever month it will be captured in.
    assert_eq!(submit(&caller, &json!({})).await.status, 402);
    shift_month(&app, &caller, "-1 month").await;
    assert_eq!(
        submit(&caller, &json!({"quality": "low"})).await.status,
        402
    );
    for task in &tasks {
        assert_eq!(caller.wait_for(task).await["cost"], 0.2);
    }
    // It was captured in the current month.
    assert_eq!(caller.balance().await["month_spend"], 0.6);
    assert_eq!(
        submit(&caller, &json!({"quality": "low"})).await.status,
        402
    );

    shift_month(&app, &caller, "-1 month").await;
    assert_eq!(caller.balance().await["month_spend"], 0.0);
    let task = accepted(&caller, &json!({})).await;
    assert_eq!(caller.wait_for(&task).await["status"], "completed");
    assert_eq!(caller.balance().await["month_spend"], 0.2);
    assert_eq!(submit(&caller, &json!({"n": 3})).await.status, 402);
    let task = accepted(&caller, &json!({"n": 2})).await;
    assert_eq!(caller.wait_for(&task).await["cost"], 0.4);
    app.finish().await;
}

/// The time of a statement is that of its start: one that began before midnight may settle after one that began
/// later.
#[tokio::test]
async fn a_late_settlement_does_not_turn_the_month_back() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app
        .create(Account::with("9.00").monthly_quota("0.60"))
        .await;
    assert_eq!(caller.generate("before midnight").await.status, 200);
    let gate = upstream.hold(1);
    let late = accepted(&caller, &json!({})).await;
    upstream.wait_for(2).await;
    // As if the spend belonged to a month that the settlement does not know yet.
    shift_month(&app, &caller, "1 month").await;
    gate.add_permits(1);
    assert_eq!(caller.wait_for(&late).await["status"], "completed");
    let mut conn = app.database.connect().await;
    let (month_spend, is_next): (i64, bool) =
        sqlx::query_as("SELECT month_spend, month > now() FROM accounts WHERE id = $1")
            .bind(caller.account_id)
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert_eq!((month_spend, is_next), (400_000, true));
    // Holds that are made meanwhile count it as spent.
    assert_eq!(submit(&caller, &json!({"n": 2})).await.status, 402);
    app.finish().await;
}
