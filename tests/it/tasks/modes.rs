//! Both modes, from submit to download.

use serde_json::json;

use crate::harness::TestApp;

#[tokio::test]
async fn a_sync_request_is_answered_with_its_image_and_charged_once() {
    let app = TestApp::start().await;
    let caller = app.caller("1.00").await;

    let answer = caller.generate("a lighthouse").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let link = body["data"][0]["url"].as_str().unwrap();
    let redirect = caller.get(link).await;
    assert_eq!(redirect.status, 302);
    let image = caller.get(redirect.header("location").unwrap()).await;
    assert_eq!(
        (image.status, image.header("content-type")),
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

#[tokio::test]
async fn polls_at_the_same_time_are_answered_each_with_its_own_task() {
    let app = TestApp::start().await;
    let (mine, other) = (app.caller("1.00").await, app.caller("1.00").await);
    let body = json!({"model": "gpt-image-2", "prompt": "a cat", "quality": "low"});
    let mut tasks = Vec::new();
    for caller in [&mine, &other, &mine] {
        let ticket = caller.post("/v1/images/generations?async=1", &body).await;
        tasks.push(ticket.json()["id"].as_str().unwrap().to_owned());
    }

    let paths: Vec<String> = (0..60)
        .map(|nth| format!("/v1/images/tasks/{}", tasks[nth % 3]))
        .collect();
    let polls = paths.iter().map(|path| mine.get(path));
    let answers = futures_util::future::join_all(polls).await;

    for (nth, answer) in answers.iter().enumerate() {
        if nth % 3 == 1 {
            assert_eq!(answer.status, 404, "{answer:?}");
        } else {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["id"], tasks[nth % 3]);
        }
    }
    for (caller, task) in [(&mine, &tasks[0]), (&other, &tasks[1]), (&mine, &tasks[2])] {
        caller.wait_for(task).await;
    }
    app.finish().await;
}
