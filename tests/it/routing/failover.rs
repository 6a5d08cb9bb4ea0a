//! Three routes: one is dead, one is slow, and one fails and refuses at random.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::routed;
use crate::harness::{
    TestApp, say,
    upstream::{Reply, Upstream},
};

const REQUESTS: usize = 2_000;
const CLIENTS: usize = 32;

/// The flaky upstream's replies, in order; about every second one is not an image.
fn replies() -> (Vec<Reply>, impl Fn(usize) -> bool) {
    let refuses = |index: usize| index % 11 == 3;
    let reply = move |index: usize| match index {
        _ if refuses(index) => Reply::error(400, "moderation_blocked", "No."),
        _ if index % 7 == 2 => Reply::error(500, "server_error", "oh"),
        _ if index % 5 == 1 => {
            Reply::error(429, "rate_limit_exceeded", "busy").header("retry-after-ms", "1")
        }
        _ => Reply::an_image(),
    };
    ((0..REQUESTS * 2).map(reply).collect(), refuses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_right_and_paid_for_once_despite_faulty_routes() {
    let (slow, flaky) = (Upstream::start().await, Upstream::start().await);
    let (replies, refuses) = replies();
    for reply in replies {
        flaky.next(reply);
    }
    for _ in 0..REQUESTS {
        slow.next(Reply::an_image().after(Duration::from_millis(40)));
    }
    let settings = routed(
        &[("slow", &slow), ("flaky", &flaky)],
        r#"{ backend = "dead", weight = 2 }, { backend = "slow" }, { backend = "flaky", weight = 2 }"#,
        "[routing]\nretry_wait_ms = 5\nopen_ms = 200\n\
         [backends.dead]\nkind = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\napi_key = 'k'\n",
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1000").await;

    let statuses: Vec<u16> = stream::iter(0..REQUESTS)
        .map(|index| {
            let caller = caller.clone();
            async move { caller.generate(&format!("image {index}")).await.status }
        })
        .buffer_unordered(CLIENTS)
        .collect()
        .await;

    let received = flaky.calls().len();
    let with_400 = (0..received).filter(|index| refuses(*index)).count();
    let count = |status| statuses.iter().filter(|other| **other == status).count();
    assert_eq!(
        count(400),
        with_400,
        "each refusal is reported, and none is retried"
    );
    assert_eq!(count(200), REQUESTS - with_400, "all others are generated");
    let delivered = slow.calls().len()
        + (0..received)
            .filter(|index| !refuses(*index) && index % 7 != 2 && index % 5 != 1)
            .count();
    assert_eq!(delivered, count(200), "every generated image is delivered");
    let left = caller.balance().await["balance"].as_f64().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let paid = 0.2 * count(200) as f64;
    assert!(
        (1000.0 - left - paid).abs() < 1e-6,
        "{left} left, {paid} to pay"
    );

    let mut conn = app.database.connect().await;
    let shares: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT attempt->>'route', count(*), count(*) FILTER (WHERE attempt->'class' IS NULL)
         FROM tasks CROSS JOIN jsonb_array_elements(tried) AS attempt GROUP BY 1 ORDER BY 1",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    for (route, attempts, delivered) in &shares {
        say(&format!(
            "{route}: {attempts} attempts, {delivered} of {REQUESTS} generated"
        ));
    }
    let of = |name: &str| shares.iter().find(|(route, ..)| route == name);
    assert_eq!(of("dead").unwrap().2, 0);
    // Once its circuit was open, few tasks were sent there.
    assert!(of("dead").unwrap().1 < 400, "{shares:?}");
    app.finish().await;
}
