//! An invalidated key spends nothing, from the commit on.

use std::time::Duration;

use easel::accounts::store::{self as accounts, AccountStatus};
use futures_util::future::join_all;
use serde_json::json;

use super::{ASYNC, GENERATE, accepted, body, slow, submit, tasks_of};
use crate::harness::{TestApp, upstream::Upstream};

#[tokio::test]
async fn a_revoked_key_and_a_disabled_account_spend_nothing_though_the_key_is_cached() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let replica = app.replica(&upstream.gateway("")).await;
    for how in ["revoke", "disable", "expire"] {
        let caller = app.caller("9.00").await;
        let there = caller.at(&replica.url);
        for caller in [&caller, &there] {
            assert_eq!(caller.balance().await["balance"], 9.0);
        }
        upstream.next(slow());
        let running = accepted(&caller, &json!({})).await;
        let mut conn = app.database.connect().await;
        let done = match how {
            "revoke" => accounts::revoke_key(&mut conn, caller.key_id)
                .await
                .unwrap(),
            "disable" => accounts::set_status(&mut conn, &caller.account, AccountStatus::Disabled)
                .await
                .unwrap(),
            _ => {
                let expire = "UPDATE api_keys SET expires_at = now() WHERE id = $1";
                let expired = sqlx::query(expire)
                    .bind(caller.key_id)
                    .execute(&mut conn)
                    .await;
                (expired.unwrap().rows_affected() == 1).then_some(())
            }
        };
        assert_eq!(done, Some(()), "{how}");

        for caller in [&caller, &there] {
            for path in [GENERATE, ASYNC] {
                let refused = caller.post(path, &body("a thief", &json!({}))).await;
                assert_eq!(refused.status, 401, "{how}: {refused:?}");
                assert_eq!(refused.json()["error"]["type"], "authentication_error");
            }
        }
        assert_eq!(tasks_of(&app, &caller).await, 1, "{how}");
        // Tasks with an earlier hold end as usual.
        assert_eq!(caller.wait_for(&running).await["cost"], 0.2, "{how}");
    }
    replica.finish().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_amid_many_requests_spends_nothing_after_the_commit() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("99.00").await;
    let revoking = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut conn = app.database.connect().await;
        accounts::revoke_key(&mut conn, caller.key_id)
            .await
            .unwrap();
        tasks_of(&app, &caller).await
    };
    let none = json!({});
    let asked = join_all((0..150).map(|_| submit(&caller, &none)));
    let (spent, answers) = tokio::join!(revoking, asked);
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!(i64::try_from(accepted).unwrap(), spent);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer.status, 202 | 401))
    );
    assert_eq!(tasks_of(&app, &caller).await, spent);
    app.finish().await;
}
