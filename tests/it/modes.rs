//! Both modes, from submit to download.

use serde_json::json;

use crate::harness::TestApp;

#[tokio::test]
async fn a_sync_request_is_answered_with_its_picture_and_charged_once() {
    let app = TestApp::start().await;
    let caller = app.caller("1.00").await;

    let answer = caller.draw("a lighthouse").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let link = body["data"][0]["url"].as_str().unwrap();
    let redirect = caller.get(link).await;
    assert_eq!(redirect.status, 302);
    let picture = caller.get(redirect.header("location").unwrap()).await;
    assert_eq!(
        (picture.status, picture.header("content-type")),
        (200, Some("image/png"))
    );
    assert_eq!(caller.balance().await["balance"], 0.8);
    app.finish().await;
}

#[tokio::test]
async fn an_async_request_is_answered_at_once_and_ends() {
    let app = TestApp::start().await;
    let caller = app.caller("1.00").await;

    let body = json!({"model": "gpt-image-2", "prompt": "a cat", "n": 2, "quality": "low"});
    let ticket = caller.post("/v1/images/generations?async=1", &body).await;

    assert_eq!(ticket.status, 202, "{ticket:?}");
    let task = caller
        .wait_for(ticket.json()["task_id"].as_str().unwrap())
        .await;
    assert_eq!(task["status"], "completed");
    assert_eq!(task["cost"], 0.2);
    assert_eq!(task["data"].as_array().unwrap().len(), 2);
    app.finish().await;
}
