//! A repeat is not a second purchase: requests with an idempotency key, and retries without one.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    upstream::{Reply, Upstream, image},
};

const GENERATE: &str = "/v1/images/generations";
const ASYNC: &str = "/v1/images/generations?async=1";
const NAME: &str = "idempotency-key";
const RETRY: &str = "x-stainless-retry-count";

struct Gateway {
    app: TestApp,
    upstream: Upstream,
    caller: Caller,
}

impl Gateway {
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        let app = TestApp::with(&upstream.gateway("")).await;
        let caller = app.caller("10.00").await;
        Self {
            app,
            upstream,
            caller,
        }
    }

    /// The next image takes a while.
    fn slow(&self) {
        let reply = Reply::images(&[image(16, 16, 0)]);
        self.upstream.next(reply.after(Duration::from_millis(1200)));
    }

    /// A second key of the same account.
    async fn second_key(&self) -> Caller {
        self.app.database.second_key(&self.caller).await
    }

    async fn change(&self, update: &'static str) {
        let mut conn = self.app.database.connect().await;
        let done = sqlx::query(update).execute(&mut conn).await.unwrap();
        assert!(done.rows_affected() > 0, "{update}");
    }

    /// Shuts down in order; asserts that this many images were generated and paid for.
    async fn finish(self, purchases: usize) {
        let spent = self.caller.balance().await["used_balance"].clone();
        self.app.finish().await;
        assert_eq!(self.upstream.calls().len(), purchases);
        let fen = u32::try_from(purchases).unwrap() * 20;
        assert_eq!(spent, f64::from(fen) / 100.0);
    }
}

fn body(prompt: &str) -> Value {
    json!({"model": "gpt-image-2", "prompt": prompt})
}

async fn post(caller: &Caller, path: &str, (name, value): (&str, &str), body: &Value) -> Answer {
    let request = caller.request(Method::POST, path).header(name, value);
    Answer::of(request.json(body)).await
}

async fn post_form(caller: &Caller, header: (&str, &str), form: Form) -> Answer {
    let request = caller.request(Method::POST, "/v1/images/edits?async=1");
    Answer::of(request.header(header.0, header.1).multipart(form)).await
}

/// The task id in the answer to a request.
fn task(answer: &Answer) -> String {
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_same_idempotency_key_and_body_is_the_same_task_in_both_modes() {
    let gateway = Gateway::start().await;
    let (caller, name) = (&gateway.caller, (NAME, "order-1"));
    gateway.slow();
    let first = task(&post(caller, ASYNC, name, &body("a cup")).await);
    let again = post(caller, ASYNC, name, &body("a cup")).await;
    assert_eq!((again.status, task(&again)), (202, first.clone()));
    // It still runs: a sync repeat waits for it.
    let waited = post(caller, GENERATE, name, &body("a cup")).await;
    assert_eq!((waited.status, task(&waited)), (200, first.clone()));
    let link = waited.json()["data"][0]["url"].clone();
    // It has ended: the same images again. Fields in another order are the same body.
    let body = json!({"prompt": "a cup", "model": "gpt-image-2", "n": 1});
    let after = post(caller, GENERATE, name, &body).await;
    assert_eq!(
        (task(&after), &after.json()["data"][0]["url"]),
        (first, &link)
    );
    gateway.finish(1).await;
}

#[tokio::test]
async fn the_same_idempotency_key_with_another_body_is_refused() {
    let gateway = Gateway::start().await;
    let (caller, name) = (&gateway.caller, (NAME, "order-1"));
    task(&post(caller, GENERATE, name, &body("a cup")).await);
    for other in [
        body("a saucer"),
        json!({"model": "gpt-image-2", "prompt": "a cup", "n": 2}),
        json!({"model": "gpt-image-2", "prompt": "a cup", "quality": "low"}),
        json!({"model": "gpt-image-2", "prompt": "a cup", "size": "3:2"}),
    ] {
        for path in [GENERATE, ASYNC] {
            let refused = post(caller, path, name, &other).await;
            assert_eq!(refused.status, 422, "{other}: {refused:?}");
        }
    }
    // A field that nobody reads does not change the request.
    let same = json!({"model": "gpt-image-2", "prompt": "a cup", "user": "someone"});
    task(&post(caller, GENERATE, name, &same).await);
    let refused = post(caller, GENERATE, name, &body("a saucer")).await;
    insta::assert_json_snapshot!(refused.json(), @r#"
    {
      "error": {
        "code": "idempotency_key_reused",
        "message": "this Idempotency-Key was used for another request",
        "param": null,
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    gateway.finish(1).await;
}

#[tokio::test]
async fn an_idempotency_key_has_at_most_255_characters() {
    let gateway = Gateway::start().await;
    let caller = &gateway.caller;
    let mut bodies = Vec::new();
    for bad in ["x".repeat(256), " ".to_owned(), "é".to_owned()] {
        let refused = post(caller, GENERATE, (NAME, &bad), &body("a cup")).await;
        bodies.push(refused.refusal());
    }
    bodies.dedup();
    insta::assert_snapshot!(bodies.join("\n"), @r#"400 {"error":{"message":"Idempotency-Key must be 1 to 255 visible characters","type":"invalid_request_error","code":null,"param":"Idempotency-Key","provider":"easel"}}"#);
    let longest = "x".repeat(255);
    let first = task(&post(caller, GENERATE, (NAME, &longest), &body("a cup")).await);
    let again = task(&post(caller, GENERATE, (NAME, &longest), &body("a cup")).await);
    assert_eq!(first, again);
    gateway.finish(1).await;
}

#[tokio::test]
async fn an_idempotency_key_is_kept_for_a_day() {
    let gateway = Gateway::start().await;
    let (caller, name) = (&gateway.caller, (NAME, "order-1"));
    let first = task(&post(caller, GENERATE, name, &body("a cup")).await);
    gateway
        .change("UPDATE task_history SET created_at = now() - interval '23 hours 59 minutes'")
        .await;
    assert_eq!(
        task(&post(caller, GENERATE, name, &body("a cup")).await),
        first
    );
    gateway
        .change("UPDATE task_history SET created_at = now() - interval '24 hours 1 second'")
        .await;
    let second = task(&post(caller, GENERATE, name, &body("a saucer")).await);
    assert_ne!(first, second);
    // From now on, it belongs to the second task.
    assert_eq!(
        task(&post(caller, GENERATE, name, &body("a saucer")).await),
        second
    );
    assert_eq!(
        post(caller, GENERATE, name, &body("a cup")).await.status,
        422
    );
    gateway.finish(2).await;
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_one_api_key() {
    let gateway = Gateway::start().await;
    let (caller, name) = (&gateway.caller, (NAME, "order-1"));
    let second = gateway.second_key().await;
    let first = task(&post(caller, GENERATE, name, &body("a cup")).await);
    assert_ne!(
        task(&post(&second, GENERATE, name, &body("a cup")).await),
        first
    );
    gateway.finish(2).await;
}

#[tokio::test]
async fn a_refused_request_does_not_use_up_its_idempotency_key_and_a_failed_one_does() {
    let gateway = Gateway::start().await;
    let poor = gateway.app.caller("0.10").await;
    let name = (NAME, "order-1");
    assert_eq!(
        post(&poor, GENERATE, name, &body("a cup")).await.status,
        402
    );
    let cheaper = json!({"model": "gpt-image-2", "prompt": "a cup", "quality": "low"});
    task(&post(&poor, GENERATE, name, &cheaper).await);
    // The same answer again, and no second attempt: that takes a new name.
    gateway
        .upstream
        .next(Reply::error(400, "invalid_value", "cannot generate that"));
    let failed = post(&gateway.caller, GENERATE, name, &body("a cup")).await;
    assert_eq!(failed.status, 400);
    let again = post(&gateway.caller, GENERATE, name, &body("a cup")).await;
    assert_eq!((again.status, again.json()), (400, failed.json()));
    assert_eq!(gateway.caller.balance().await["balance"], 10.0);
    assert_eq!(gateway.upstream.calls().len(), 2);
    gateway.app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_at_once_on_two_replicas_are_one_purchase() {
    let gateway = Gateway::start().await;
    let replica = gateway.app.replica(&gateway.upstream.gateway("")).await;
    let there = gateway.caller.at(&replica.url);
    gateway.slow();
    let cup = body("a cup");
    let asked = (0..20).map(|index| {
        let caller = if index % 2 == 0 {
            &gateway.caller
        } else {
            &there
        };
        let path = if index % 4 < 2 { GENERATE } else { ASYNC };
        post(caller, path, (NAME, "order-1"), &cup)
    });
    let answers = join_all(asked).await;
    let tasks: std::collections::BTreeSet<_> = answers.iter().map(task).collect();
    assert_eq!(tasks.len(), 1);
    replica.finish().await;
    gateway.finish(1).await;
}

#[tokio::test]
async fn a_retry_joins_its_first_request_running_or_just_completed() {
    let gateway = Gateway::start().await;
    let caller = &gateway.caller;
    gateway.slow();
    let first = task(&caller.post(ASYNC, &body("a cup")).await);
    assert_eq!(
        task(&post(caller, ASYNC, (RETRY, "1"), &body("a cup")).await),
        first
    );
    assert_eq!(
        task(&post(caller, GENERATE, (RETRY, "2"), &body("a cup")).await),
        first
    );
    // It was delivered: another call gets its own image.
    let second = task(&post(caller, ASYNC, (RETRY, "1"), &body("a cup")).await);
    assert_ne!(second, first);
    caller.wait_for(&second).await;
    gateway
        .change("UPDATE task_history SET ended_at = now() - interval '9 minutes 55 seconds'")
        .await;
    assert_eq!(
        task(&post(caller, ASYNC, (RETRY, "2"), &body("a cup")).await),
        second
    );
    gateway
        .change("UPDATE task_history SET ended_at = now() - interval '10 minutes 1 second'")
        .await;
    let third = task(&post(caller, ASYNC, (RETRY, "3"), &body("a cup")).await);
    assert_ne!(third, second);
    caller.wait_for(&third).await;
    gateway.finish(3).await;
}

#[tokio::test]
async fn only_declared_retries_are_joined() {
    let gateway = Gateway::start().await;
    let caller = &gateway.caller;
    let mut tasks = std::collections::BTreeSet::new();
    tasks.insert(task(&caller.post(GENERATE, &body("a cup")).await));
    for count in ["0", "", "-1", "one"] {
        tasks.insert(task(
            &post(caller, GENERATE, (RETRY, count), &body("a cup")).await,
        ));
    }
    tasks.insert(task(&caller.post(GENERATE, &body("a cup")).await));
    assert_eq!(tasks.len(), 6);
    gateway.finish(6).await;
}

#[tokio::test]
async fn a_retry_joins_neither_failed_nor_foreign_tasks() {
    let gateway = Gateway::start().await;
    let caller = &gateway.caller;
    gateway
        .upstream
        .next(Reply::error(400, "invalid_value", "broken"));
    let failed = caller.generate("a cup").await;
    assert_eq!(failed.status, 400, "{failed:?}");
    assert_eq!(failed.header("x-should-retry"), Some("false"));
    let failures = gateway.upstream.calls().len();
    let first = task(&post(caller, GENERATE, (RETRY, "1"), &body("a cup")).await);

    let second = gateway.second_key().await;
    let stranger = gateway.app.caller("10.00").await;
    let mut tasks = vec![first];
    for caller in [&second, &stranger] {
        tasks.push(task(
            &post(caller, GENERATE, (RETRY, "1"), &body("a cup")).await,
        ));
    }
    tasks.push(task(
        &post(caller, GENERATE, (RETRY, "1"), &body("a saucer")).await,
    ));
    tasks.sort_unstable();
    tasks.dedup();
    assert_eq!(tasks.len(), 4);
    assert_eq!(gateway.upstream.calls().len() - failures, 4);
    assert_eq!(caller.balance().await["used_balance"], 0.6);
    gateway.app.finish().await;
}

fn form(images: &[u8]) -> Form {
    let part = Part::bytes(image(20, 20, images[0])).file_name("photo.png");
    let form = Form::new()
        .text("model", "gpt-image-2")
        .text("prompt", "a cup");
    images[1..]
        .iter()
        .fold(form.part("image", part), |form, index| {
            let part = Part::bytes(image(20, 20, *index)).file_name("other.png");
            form.part("image[]", part)
        })
}

#[tokio::test]
async fn uploaded_images_are_compared_by_their_bytes() {
    let gateway = Gateway::start().await;
    let caller = &gateway.caller;
    let retry = (RETRY, "1");
    // Each form has its own boundary.
    let first = task(&post_form(caller, (RETRY, "0"), form(&[1])).await);
    assert_eq!(task(&post_form(caller, retry, form(&[1])).await), first);
    let encoded = base64_simd::STANDARD.encode_to_string(image(20, 20, 1));
    let mut same = body("a cup");
    same["image"] = json!(format!("data:image/png;base64,{encoded}"));
    assert_eq!(task(&post(caller, ASYNC, (RETRY, "2"), &same).await), first);
    // With an idempotency key, too.
    let named = task(&post_form(caller, (NAME, "order-1"), form(&[1, 2])).await);
    assert_eq!(
        task(&post_form(caller, (NAME, "order-1"), form(&[1, 2])).await),
        named
    );
    assert_eq!(
        post_form(caller, (NAME, "order-1"), form(&[2, 1]))
            .await
            .status,
        422
    );

    for other in [&[2][..], &[1, 1], &[2, 1]] {
        let task = task(&post_form(caller, retry, form(other)).await);
        assert!(task != first && task != named, "{other:?}");
        caller.wait_for(&task).await;
    }
    for task in [first, named] {
        assert_eq!(caller.wait_for(&task).await["status"], "completed");
    }
    gateway.finish(5).await;
}
