//! Reading from a store that fails for a moment: images inside an answer are read before a status is sent, and to their
//! end; a task whose reference cannot be read is retried.

use serde_json::json;

use crate::harness::{
    TestApp,
    caller::Answer,
    fault_proxy::{Fault, FaultProxy, Target},
    images,
    redact::redacted,
    s3::S3Server,
    upstream::{Reply, Upstream},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_unreadable_images_has_their_links() {
    let _redacted = redacted();
    let (server, upstream) = (S3Server::s3s().await, Upstream::start().await);
    let proxy = FaultProxy::start(Target::Tcp(server.address())).await;
    let storage = S3Server::settings(&format!("http://{}", proxy.address()));
    let app = TestApp::with(&(storage + &upstream.gateway(""))).await;
    let caller = app.caller("1").await;
    let ask = async || {
        let body =
            json!({"model": "gpt-image-2", "prompt": "a tern", "response_format": "b64_json"});
        let request = caller.request(reqwest::Method::POST, "/v1/images/generations");
        Answer::of(request.header("idempotency-key", "once").json(&body)).await
    };
    let image = images::noise(600, 500);
    upstream.next(Reply::images(std::slice::from_ref(&image)));
    let whole = ask().await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let task = whole.json()["id"].as_str().unwrap().to_owned();

    // Each connection delivers a part of it.
    proxy.set(Fault::CutAfter(300_000));
    let resumed = ask().await;
    assert_eq!(resumed.status, 200, "{resumed:?}");
    let text = resumed.json()["data"][0]["b64_json"].clone();
    let read = base64_simd::STANDARD.decode_to_vec(text.as_str().unwrap());
    assert!(read.unwrap() == image);

    proxy.set(Fault::Reset);
    let failed = ask().await;
    insta::assert_json_snapshot!(failed.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the image is stored but cannot be read at present: it is at /v1/images/tasks/[task]",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert!(failed.text().contains(&task), "{failed:?}");
    assert_eq!(failed.header("x-task-id"), Some(task.as_str()));
    assert_eq!(failed.header("x-should-retry"), Some("false"));
    assert_eq!(failed.header("retry-after"), Some("5"));
    proxy.set(Fault::None);

    assert_eq!(ask().await.status, 200);
    assert_eq!(upstream.calls().len(), 1);
    assert_eq!(caller.balance().await["balance"], 0.8);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_briefly_unreadable_reference_fails_no_task() {
    let (server, upstream) = (S3Server::s3s().await, Upstream::start().await);
    let proxy = FaultProxy::start(Target::Tcp(server.address())).await;
    let storage = S3Server::settings(&format!("http://{}", proxy.address()));
    let app = TestApp::with(&(storage + &upstream.gateway(""))).await;
    let caller = app.caller("1").await;
    let uploaded = caller.upload(images::noise(600, 500), "a.png").await;
    let body =
        json!({"model": "gpt-image-2", "prompt": "a tern", "image_urls": uploaded.json()["url"]});

    // Each connection delivers a part of it.
    proxy.set(Fault::CutAfter(300_000));
    let task = caller.submit(&body).await;
    let tried = "SELECT count(*) FROM tasks WHERE jsonb_array_length(tried) > 0";
    app.database.wait_for(tried, 1).await;
    proxy.set(Fault::None);

    assert_eq!(caller.wait_for(&task).await["status"], "completed");
    assert_eq!(upstream.calls().len(), 1, "only whole requests count");
    assert_eq!(caller.balance().await["balance"], 0.8);
    app.finish().await;
}
