//! The whole program, with proxies in its environment: what clients get, what they pay, and how many references of a
//! task are fetched at once.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::web::{BYTES_MAX, Web};
use crate::harness::{
    TestApp,
    caller::Caller,
    database::TestDatabase,
    images::png,
    process::{Process, Setup},
    upstream::Upstream,
};

/// A gateway process that trusts the server and may reach it. The proxy never answers, if it is used.
async fn serve(database: &TestDatabase, web: &Web, proxy: &TcpListener) -> Process {
    serve_in(setup(database, web, proxy)).await
}

async fn serve_in(setup: Setup) -> Process {
    tokio::task::spawn_blocking(move || setup.serve())
        .await
        .unwrap()
}

fn setup(database: &TestDatabase, web: &Web, proxy: &TcpListener) -> Setup {
    let settings = format!(
        "[uploads]\nbytes_max = {BYTES_MAX}\n\
         [references]\nallow_private_networks = true\nfailure_delay_step_ms = 1\nfetched_bytes_max = 150_000\n"
    );
    let proxy = format!("http://{}", proxy.local_addr().unwrap());
    let mut setup = Setup::on(database, &settings);
    let root = setup.dir.path().join("root.pem");
    let base64 = base64_simd::STANDARD.encode_to_string(web.root.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
    std::fs::write(&root, pem).unwrap();
    setup = setup.env("SSL_CERT_FILE", root.to_str().unwrap());
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        setup = setup.env(name, &proxy).env(&name.to_lowercase(), &proxy);
    }
    setup
}

fn body(urls: &[String]) -> Value {
    json!({"model": "gpt-image-2", "prompt": "a cat", "image_urls": urls})
}

#[tokio::test]
async fn references_are_fetched_before_anything_is_generated_and_failures_are_free() {
    let web = Web::start().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let database = TestDatabase::create().await;
    let gateway = serve(&database, &web, &proxy).await;
    let caller = database.caller(&gateway.url(), "9").await;
    let at = |path: &str| format!("https://{}/{path}", web.address);

    // Sixteen, four at a time.
    let many = vec![at("slow-png"); 16];
    let answer = caller.post("/v1/images/generations", &body(&many)).await;
    assert_eq!(answer.status, 200, "{answer:?} {}", gateway.stderr());
    assert_eq!(web.slow_max(), 4);
    let balance = caller.balance().await["balance"].clone();
    assert_ne!(balance, 9.0);

    let over = format!("lies?{}", BYTES_MAX + 1);
    let mut bodies = Vec::new();
    for path in [
        "status?404",
        "status?304",
        "status?204",
        "encoded?gzip",
        "loop",
        "cut-chunk",
        "to?http://public.test/",
        &over,
        "html",
    ] {
        let asked = body(&[at("png"), at(path), at("status?500")]);
        bodies.push(refused(&caller, &asked).await);
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"reference image 2 could not be fetched","type":"invalid_request_error","code":"invalid_reference","param":null,"provider":"easel"}}
    400 {"error":{"message":"reference image 2 must be at most 100000 bytes","type":"invalid_request_error","code":"invalid_reference","param":null,"provider":"easel"}}
    400 {"error":{"message":"reference image 2: unsupported image type: text/html, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":"invalid_reference","param":null,"provider":"easel"}}
    "#);
    assert_eq!(caller.balance().await["balance"], balance);

    gateway.end();
    database.assert_invariants().await;
    let asked = tokio::time::timeout(Duration::ZERO, proxy.accept()).await;
    assert!(asked.is_err(), "the proxy was asked");
}

// The server has to answer while the test waits for the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_cannot_be_stored_for_a_moment_fails_no_task() {
    let web = Web::start().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let database = TestDatabase::create().await;
    let setup = setup(&database, &web, &proxy);
    let objects = setup.data_dir().join("objects");
    let gateway = serve_in(setup).await;
    let caller = database.caller(&gateway.url(), "1").await;
    let url = format!("https://{}/slow-png", web.address);
    let task = caller.submit(&body(&[url])).await;
    while web.slow_max() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let away = objects.with_file_name("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "in the way").unwrap();

    gateway.wait_logged("a reference could not be fetched");

    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    let ended = caller.wait_for(&task).await;
    assert_eq!(ended["status"], "completed", "{ended}");
    assert_eq!(caller.balance().await["balance"], 0.8);
    gateway.end();
    database.assert_invariants().await;
}

/// The refusal, which is the same in both modes.
async fn refused(caller: &Caller, asked: &Value) -> String {
    let answer = caller.post("/v1/images/generations", asked).await;
    let task = caller.submit(asked).await;
    let task = caller.wait_for(&task).await;
    assert_eq!(task["status"], "failed");
    assert_eq!(task["error"]["message"], answer.json()["error"]["message"]);
    answer.refusal()
}

#[tokio::test]
async fn the_gateway_does_not_call_itself() {
    let settings = "[server]\npublic_url = \"https://images.example.com\"";
    let app = TestApp::with(settings).await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
    for url in [
        "https://images.example.com/",
        "https://images.example.com:443/v1/models",
        "https://IMAGES.example.com./f/image/1-2-a.png",
        "https://images.example.com/f/object/x",
    ] {
        let asked = body(&[url.to_owned()]);
        let answer = caller.post("/v1/images/generations", &asked).await;
        bodies.push(answer.refusal());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"400 {"error":{"message":"image_urls must not be a URL of this gateway, other than that of an upload or image","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}"#);
    app.finish().await;
}

/// `.invalid` never exists, so the default settings can be tested without internet access.
#[tokio::test]
async fn unfetchable_references_are_named_before_the_upstream_is_called() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("9").await;
    let upload = caller.upload(png(), "a.png").await;
    let upload = upload.json()["url"].as_str().unwrap().to_owned();
    let nowhere = "https://host.invalid/a.png".to_owned();
    let second = body(&[upload.clone(), nowhere.clone(), nowhere.clone()]);
    let mut bodies = vec![refused(&caller, &second).await];
    let mut mask = body(&[upload]);
    mask["mask"] = nowhere.into();
    bodies.push(refused(&caller, &mask).await);
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"reference image 2 could not be fetched","type":"invalid_request_error","code":"invalid_reference","param":null,"provider":"easel"}}
    400 {"error":{"message":"mask could not be fetched","type":"invalid_request_error","code":"invalid_reference","param":null,"provider":"easel"}}
    "#);
    assert_eq!(upstream.calls().len(), 0);
    assert_eq!(caller.balance().await["balance"], 9.0);
    app.finish().await;
}

/// The exempt server lets one private address through, so the program must never contain it.
#[test]
fn only_tests_have_an_exempt_server() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut dirs = vec![root];
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if std::fs::read_to_string(&path)
                .unwrap()
                .contains("ExemptServer")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    let names: Vec<_> = found
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["fetch.rs", "mod.rs"]);
}
