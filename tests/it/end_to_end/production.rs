//! The main use case in a production setup: an S3 store, a real upstream's API, and two gateways on one database.
//! Upload, generate from it, poll at the other gateway, download by the signed link, pay.

use base64_simd::STANDARD;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{
    TestApp,
    s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY},
    upstream::{Upstream, image},
};

fn settings(store: &S3Server, upstream: &Upstream) -> String {
    format!(
        "[storage]\nurl = \"s3://easel/shared/bucket\"\nendpoint = \"{}\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
         secret_access_key = \"{SECRET_ACCESS_KEY}\"\n\
         [backends.real]\n{}\n[models.gpt-image-2]\nroutes = [\"real\"]\n",
        store.endpoint,
        upstream.settings("")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_runs_over_s3s() {
    main_job(&S3Server::s3s().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_runs_over_seaweedfs() {
    if let Some(store) = S3Server::seaweedfs().await {
        main_job(&store).await;
    }
}

async fn main_job(store: &S3Server) {
    let upstream = Upstream::start().await;
    let settings = settings(store, &upstream);
    let app = TestApp::with(&settings).await;
    let other = app.replica(&settings).await;
    let caller = app.caller("1.00").await;

    let photo = image(64, 48, 7);
    let part = Part::bytes(photo.clone()).file_name("photo.png");
    let upload = caller
        .post_form("/v1/uploads/images", Form::new().part("file", part))
        .await
        .json();
    assert_eq!(
        caller.get(upload["url"].as_str().unwrap()).await.body,
        photo
    );

    let body =
        json!({"model": "gpt-image-2", "prompt": "a heron", "n": 2, "image_urls": [upload["url"]]});
    let ticket = caller.post("/v1/images/edits?async=1", &body).await.json();
    let task = caller
        .at(&other.url)
        .wait_for(ticket["task_id"].as_str().unwrap())
        .await;

    assert_eq!(task["status"], "completed", "{task}");
    let sent = upstream.calls();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].n(), sent[0].size()), (Some(2), Some((1024, 1024))));
    for image in task["data"].as_array().unwrap() {
        let redirect = caller.get(image["url"].as_str().unwrap()).await;
        let location = redirect.header("location").unwrap();
        assert!(location.starts_with(&store.endpoint), "{location}");
        let image = crate::harness::caller::http_client()
            .get(location)
            .send()
            .await
            .unwrap();
        assert_eq!(image.headers()["content-type"], "image/png");
        assert!(image.bytes().await.unwrap().starts_with(b"\x89PNG"));
    }
    assert_eq!(caller.balance().await["balance"], 0.6);

    // The image itself, where it is requested: streamed from the store.
    let body = json!({"model": "gpt-image-2", "prompt": "a heron", "response_format": "b64_json"});
    let answer = caller.post("/v1/images/generations", &body).await.json();
    let inline = STANDARD
        .decode_to_vec(answer["data"][0]["b64_json"].as_str().unwrap())
        .unwrap();
    let link = caller.get(answer["data"][0]["url"].as_str().unwrap()).await;
    let plain = crate::harness::caller::http_client();
    let stored = plain
        .get(link.header("location").unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(stored.bytes().await.unwrap(), inline);
    other.finish().await;
    app.finish().await;
}
