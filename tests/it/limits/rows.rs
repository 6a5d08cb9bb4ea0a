//! What a request leaves in the database, and which queries read it again.

use reqwest::Method;
use serde_json::json;

use super::asked;
use crate::harness::{
    TestApp,
    caller::{Answer, http_client},
    images::png,
};

/// A request takes megabytes if all its fields have their full length, so queries that clients can repeat at will must
/// not read it. The test uses a request that cannot be decoded.
#[tokio::test]
async fn polls_lists_usage_and_links_never_read_the_request() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let result = caller.generate("a cat").await.json();
    let (task, link) = (result["id"].as_str().unwrap(), &result["data"][0]["url"]);
    sqlx::query("UPDATE task_history SET request = request - 'prompt' - 'n'")
        .execute(&*app.app.pool)
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

/// Nine bodies of 24 MB grew the table to 224 MB, and slowed down every query on it.
#[tokio::test]
async fn bodies_full_of_unread_fields_leave_small_rows() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\nfailure_percent = 100").await;
    let caller = app.caller("9").await;
    let filling = "x".repeat(3 << 20);
    for index in 0..9 {
        let field = format!("field-{index}");
        let fields = json!({ field: filling, "user": filling, "style": [filling] });
        caller.submit(&asked(fields)).await;
    }

    let bytes: i64 = sqlx::query_scalar("SELECT sum(pg_column_size(t))::bigint FROM tasks AS t")
        .fetch_one(&*app.app.pool)
        .await
        .unwrap();
    assert!(bytes < 9 * 2048, "{bytes} bytes for nine tasks");
    app.finish().await;
}

#[tokio::test]
async fn an_address_that_would_fill_a_row_is_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let address = |bytes: usize| format!("{:x<bytes$}", "https://images.invalid/");
    let refused = asked(json!({"image_urls": [address(8193)]}));
    let answer = caller.post("/v1/images/generations", &refused).await;
    insta::assert_json_snapshot!(answer.refused(400), @r#"
    {
      "error": {
        "code": null,
        "message": "image_urls must be an https:// URL of at most 8192 bytes",
        "param": "image_urls",
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    caller
        .submit(&asked(json!({"image_urls": [address(8192)]})))
        .await;
    app.finish().await;
}

#[tokio::test]
async fn the_database_refuses_no_text_of_a_client() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\nfailure_percent = 100").await;
    let caller = app.caller("9").await;
    let message = "prompt must not contain the character NUL";
    let answer = caller
        .post("/v1/images/generations", &asked(json!({"prompt": "a\0b"})))
        .await;
    answer.assert_refused_field(400, "prompt", message);
    for (body, status) in [
        (r#""prompt":"a\ud800b""#, 400),
        (r#""prompt":"a","user":"\ud800","a\u0000":"\u0000""#, 202),
        (r#""prompt":"\ufffe\uffff\u0001""#, 202),
    ] {
        let body = format!("{{\"model\":\"gpt-image-2\",{body}}}");
        let request = caller.request(Method::POST, "/v1/images/generations?async=1");
        let answer = Answer::of(request.body(body.clone())).await;
        assert_eq!(answer.status, status, "{body} {answer:?}");
    }
    let named = caller.upload(png(), "a\0b\u{1}.png").await;
    assert_eq!(named.status, 200, "{named:?}");
    app.finish().await;
}
