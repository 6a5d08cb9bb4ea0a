//! What a request leaves in the database, and who reads it again.

use crate::harness::{
    TestApp,
    caller::{Answer, http_client},
};

/// A request is megabytes where all its fields are as long as they may be: what clients ask as often as
/// they like must not read it. One that cannot be decoded tells.
#[tokio::test]
async fn polls_lists_usage_and_links_never_read_the_request() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let drawn = caller.draw("a cat").await.json();
    let (task, link) = (drawn["id"].as_str().unwrap(), &drawn["data"][0]["url"]);
    sqlx::query("UPDATE tasks SET request = request - 'prompt' - 'n'")
        .execute(&app.app.pool)
        .await
        .unwrap();

    for path in [
        format!("/v1/images/tasks/{task}"),
        "/v1/images/tasks?limit=100".to_owned(),
        "/v1/usage?limit=100".to_owned(),
    ] {
        let answer = caller.get(&path).await;
        assert_eq!(answer.status, 200, "{path} {answer:?}");
        assert!(answer.json().to_string().contains(task), "{path}");
    }
    let followed = Answer::of(http_client().get(link.as_str().unwrap())).await;
    assert_eq!(followed.status, 302, "{followed:?}");
    app.finish().await;
}
