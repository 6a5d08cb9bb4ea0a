//! Storage that fails while images arrive: the images are stored once it works again, and nothing new is bought
//! meanwhile.

use std::{sync::atomic::Ordering, time::Duration};

use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::json;

use crate::harness::{
    TestApp,
    caller::Caller,
    fault_proxy::{Fault, FaultProxy, Target},
    images,
    s3::S3Server,
    upstream::{Reply, Upstream, closed_gate},
};

const WAITING: usize = 6;

/// How to break and repair a store.
trait Breakable {
    fn set_broken(&self, broken: bool);
}

impl Breakable for FaultProxy {
    fn set_broken(&self, broken: bool) {
        self.set(if broken { Fault::Reset } else { Fault::None });
    }
}

/// Connections stay open, and nothing passes.
struct Silence(FaultProxy);

impl Breakable for Silence {
    fn set_broken(&self, broken: bool) {
        let fault = if broken {
            Fault::BlackHole
        } else {
            Fault::None
        };
        self.0.set(fault);
    }
}

impl Breakable for S3Server {
    fn set_broken(&self, broken: bool) {
        self.failing.store(broken, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_generated_while_s3_is_stopped_are_delivered_and_bought_once() {
    let server = S3Server::s3s().await;
    let proxy = FaultProxy::start(Target::Tcp(server.address())).await;
    let settings = S3Server::settings(&format!("http://{}", proxy.address()));
    outage(&settings, &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_generated_while_s3_is_silent_are_delivered_and_bought_once() {
    let server = S3Server::s3s().await;
    let proxy = FaultProxy::start(Target::Tcp(server.address())).await;
    let settings = S3Server::settings(&format!("http://{}", proxy.address()));
    outage(&settings, &Silence(proxy)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_generated_while_s3_answers_500_are_delivered_and_bought_once() {
    let server = S3Server::s3s().await;
    outage(&S3Server::settings(&server.endpoint), &server).await;
}

/// Images arrive during an outage, more than memory holds; other requests wait in the queue or are refused.
async fn outage(storage: &str, store: &impl Breakable) {
    let upstream = Upstream::start().await;
    let settings = format!(
        "[tasks]\nrunning_max = {WAITING}\n{storage}held_bytes_max = 1048576\n{}",
        upstream.gateway("")
    )
    // An upstream's time-out passes long before the store is back.
    .replace("[\"up\"]", "[{ backend = \"up\", timeout_ms = 2000 }]");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("10").await;
    let gate = closed_gate();
    let images: Vec<Vec<u8>> = (0..WAITING).map(|_| images::noise(400, 400)).collect();
    for image in &images {
        upstream.next(Reply::images(std::slice::from_ref(image)).held_by(&gate));
    }
    let body = |n| {
        let prompt = format!("image {n}");
        json!({"model": "gpt-image-2", "prompt": prompt, "response_format": "b64_json"})
    };
    let waiting: Vec<_> = (0..WAITING).map(|n| caller.waiting_for(body(n))).collect();
    upstream.wait_for(WAITING).await;
    let queued = caller
        .submit(&json!({"model": "gpt-image-2", "prompt": "queued"}))
        .await;

    store.set_broken(true);
    gate.add_permits(WAITING);
    until_ready_says(&caller, 503, "storage cannot be reached").await;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for path in ["/v1/images/generations", "/v1/images/edits?async=1"] {
            let body = json!({"model": "gpt-image-2", "prompt": "refused"});
            let refused = caller.post(path, &body).await;
            refused.assert_refused(503, "storage cannot be reached");
            assert_eq!(refused.header("retry-after"), Some("5"));
            assert_eq!(refused.header("x-should-retry"), None);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(upstream.calls().len(), WAITING, "bought meanwhile");
    let status = caller
        .get(&format!("/v1/images/tasks/{queued}"))
        .await
        .json()["status"]
        .clone();
    assert_eq!(status, "pending");
    store.set_broken(false);

    let mut stored = Vec::new();
    for answer in waiting {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = answer.json()["data"][0]["b64_json"].clone();
        stored.push(
            base64_simd::STANDARD
                .decode_to_vec(text.as_str().unwrap())
                .unwrap(),
        );
    }
    let sorted = |mut images: Vec<Vec<u8>>| {
        images.sort_unstable();
        images
    };
    assert!(sorted(stored) == sorted(images), "other images");
    assert_eq!(caller.wait_for(&queued).await["status"], "completed");
    assert_eq!(upstream.calls().len(), WAITING + 1);
    until_ready_says(&caller, 200, "ok").await;
    let charged = "SELECT -sum(balance_change)::bigint FROM entries WHERE kind = 'capture'";
    let images = i64::try_from(WAITING + 1).unwrap();
    assert_eq!(app.database.number(charged).await, images * 200_000);
    app.finish().await;
}

pub(super) async fn until_ready_says(caller: &Caller, status: u16, text: &str) {
    for _ in 0..1_000 {
        let ready = caller.get("/readyz").await;
        if ready.status == status && String::from_utf8_lossy(&ready.body).contains(text) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "never ready: {status} {text}: {:?}",
        caller.get("/readyz").await
    );
}

#[tokio::test]
async fn a_full_disk_is_reported_before_an_upstream_is_called() {
    let upstream = Upstream::start().await;
    let settings = format!(
        "[storage]\nfree_bytes_min = 1125899906842624\n{}",
        upstream.gateway("")
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let mut bodies = Vec::new();
    for path in ["/v1/images/generations", "/v1/images/generations/async"] {
        let body = json!({"model": "gpt-image-2", "prompt": "no room"});
        let refused = caller.post(path, &body).await;
        bodies.push(refused.refusal());
        assert_eq!(refused.header("retry-after"), Some("5"));
    }
    // The remaining space is reserved for images that are paid for.
    let upload = caller.upload(images::png(), "a.png").await;
    bodies.push(upload.refusal());
    bodies.push(caller.get("/readyz").await.refusal());
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"503 {"error":{"message":"storage is full","type":"server_error","code":null,"param":null,"provider":"easel"}}"#);
    assert_eq!(upstream.calls().len(), 0);
    let balance = caller.balance().await;
    assert_eq!(
        (&balance["balance"], &balance["held"]),
        (&1.0.into(), &0.0.into())
    );
    app.finish().await;
}

#[tokio::test]
async fn a_store_that_never_recovers_costs_nothing() {
    let upstream = Upstream::start().await;
    let settings = format!(
        "[tasks]\ndeadline_ms = 3000\nlease_ms = 1000\n{}",
        upstream.gateway("")
    );
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    assert_eq!(caller.generate("before").await.status, 200);
    let objects = app.app.config.data_dir.join("objects");
    let away = app.app.config.data_dir.join("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "in the way").unwrap();

    let failed = caller.generate("meanwhile").await;
    failed.assert_refused(504, "the task ran past its deadline");
    assert_eq!(failed.header("x-should-retry"), Some("false"));
    until_ready_says(&caller, 503, "storage cannot be reached").await;
    let refused = caller.generate("still").await;
    assert_json_snapshot!(refused.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "storage cannot be reached",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(caller.balance().await["balance"], 0.8);

    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    until_ready_says(&caller, 200, "ok").await;
    assert_eq!(caller.generate("after").await.status, 200);
    assert_eq!(caller.balance().await["balance"], 0.6);
    app.finish().await;
}

#[tokio::test]
async fn an_upload_that_cannot_be_stored_may_be_retried_and_one_that_cannot_be_read_is_our_fault() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let upload = caller.upload(images::png(), "a.png").await.json();
    let objects = app.app.config.data_dir.join("objects");
    let away = app.app.config.data_dir.join("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "in the way").unwrap();

    let read = caller.get(upload["url"].as_str().unwrap()).await;
    let stored = caller.upload(images::png(), "b.png").await;

    assert_json_snapshot!(read.refused(500), @r#"
    {
      "error": {
        "code": null,
        "message": "storage did not answer",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(stored.header("retry-after"), Some("5"));
    assert_json_snapshot!(stored.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "storage cannot be reached",
        "param": "file",
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    app.finish().await;
}
