//! Reference images, in every form that clients use.

use image::ImageFormat;
use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};

use super::{FAILING, accepted, body};
use crate::harness::{
    TestApp,
    caller::Answer,
    images::{image, png},
};

fn data_url(bytes: &[u8]) -> String {
    format!(
        "data:image/png;base64,{}",
        base64_simd::STANDARD.encode_to_string(bytes)
    )
}

fn count(request: &Value) -> usize {
    request["references"].as_array().unwrap().len()
}

#[tokio::test]
async fn links_are_found_in_all_spellings() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("99").await;
    let (a, b) = (
        "https://images.invalid/a.png",
        "https://images.invalid/b.png",
    );
    for fields in [
        json!({"image_urls": [a, b]}),
        json!({"image_urls": [{"url": a}, b]}),
        json!({"image_urls": a, "image_input": b}),
        json!({"image_input": [a, {"url": b}]}),
        json!({"images": [{"image_url": a}, {"image_url": {"url": b}}]}),
        json!({"image": [a, b]}),
        json!({"image": a, "images": [b], "image_urls": []}),
        json!({"image": {"url": a}, "image_urls": ["", b], "mask": null}),
    ] {
        let request = accepted(&app, &caller, fields.clone()).await;
        assert_eq!(count(&request), 2, "{fields}");
        let text = request["references"].to_string();
        assert!(text.contains(a) && text.contains(b), "{fields} {text}");
    }
    app.finish().await;
}

#[tokio::test]
async fn data_urls_are_decoded_leniently() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("99").await;
    let whole = data_url(&png());
    let (head, base64) = whole.split_at("data:image/png;base64,".len());
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(76)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    for url in [
        whole.clone(),
        whole.trim_end_matches('=').to_owned(),
        format!("{head}{}", base64.replace('+', "-").replace('/', "_")),
        format!("{head}{}", lines.join("\r\n")),
        whole.replace("data:image/png", "DATA:IMAGE/PNG"),
        whole.replace("image/png", "image/*"),
        data_url(&image(ImageFormat::Jpeg)),
    ] {
        let request = accepted(&app, &caller, json!({ "image": url })).await;
        assert_eq!(count(&request), 1, "{url}");
        assert!(
            request["references"][0].to_string().contains("uploads/"),
            "{request}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn invalid_references_are_refused_and_cost_nothing() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let pdf = base64_simd::STANDARD.encode_to_string(b"%PDF-1.7\n");
    let damaged = data_url(&png()[..40]);
    let mut bodies = Vec::new();
    for reference in [
        "data:image/png;base64,@@@@",
        "data:image/png;base64,A",
        "data:image/png,AAAA",
        "data:text/html;base64,AAAA",
        "data:",
        &format!("data:image/png;base64,{pdf}"),
        &damaged,
        "http://example.com/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "cat.png",
        "https://127.0.0.1/a.png",
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest",
        "https://[::1]/a.png",
        "https://2130706433/a.png",
        "https://localhost/a.png",
        "https://me:pw@example.com/a.png",
        "https://example.com:8443/a.png",
        &format!("https://example.com/{}", "ä".repeat(4000)),
    ] {
        let asked = body(json!({"image_urls": [reference]}));
        let answer = caller.post("/v1/images/generations", &asked).await;
        bodies.push(answer.refusal());
        assert_eq!(answer.header("x-should-retry"), None);
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"a data URL must be data:image/…;base64, followed by valid base64","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: application/pdf, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"the image is damaged or cut off","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must be an https:// URL","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must be a valid https:// URL","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must name a public host","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must not hold a user name or password","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must use port 443","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"image_urls must be at most 8192 bytes long","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    "#);
    assert_eq!(caller.balance().await["balance"], 9.0);
    app.finish().await;
}

#[tokio::test]
async fn fields_without_references_are_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
    for (field, value) in [("image", json!(5)), ("images", json!([{"file_id": "x"}]))] {
        let asked = body(json!({ field: value }));
        let answer = caller.post("/v1/images/generations", &asked).await;
        bodies.push(answer.refusal());
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"image must be an https:// or data: URL, a list of them, or of objects with url","type":"invalid_request_error","code":null,"param":"image","provider":"easel"}}
    400 {"error":{"message":"images must be an https:// or data: URL, a list of them, or of objects with url","type":"invalid_request_error","code":null,"param":"images","provider":"easel"}}
    "#);
    app.finish().await;
}

#[tokio::test]
async fn at_most_sixteen_are_accepted_in_all() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    let links = |count: usize| vec!["https://images.invalid/a.png"; count];
    let most = json!({"image_urls": links(10), "images": links(6)});
    assert_eq!(count(&accepted(&app, &caller, most).await), 16);

    let more = body(json!({"image_urls": links(10), "images": links(7)}));
    let answer = caller.post("/v1/images/generations", &more).await;
    assert_json_snapshot!(answer.refused(400), @r#"
    {
      "error": {
        "code": null,
        "message": "17 reference images given, allowed are 16",
        "param": "image_urls",
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn own_links_are_read_from_storage_whatever_their_scheme() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let upload = caller.upload(png(), "a.png").await.json();
    let result = caller.generate("a cat").await.json();
    let links = [&upload["url"], &result["data"][0]["url"]];
    let links = links.map(|link| link.as_str().unwrap());
    for link in links {
        for link in [link.to_owned(), link.replace("http://", "https://")] {
            let asked = body(json!({"image_urls": [link]}));
            let answer = caller.post("/v1/images/edits", &asked).await;
            assert_eq!(answer.status, 200, "{link} {answer:?}");
        }
    }
    let mut bodies = Vec::new();
    for link in [
        format!("{}/f/image/1-2-a.png", app.url),
        format!("{}/f/image/%00", app.url),
        links[1].replace("-1.png", "-2.png"),
    ] {
        let asked = body(json!({ "image": link }));
        let answer: Answer = caller.post("/v1/images/edits", &asked).await;
        bodies.push(answer.refusal());
    }
    app.app.clock.advance(app.app.config.uploads.ttl());
    let expired = body(json!({ "image": links[0] }));
    let answer = caller.post("/v1/images/edits", &expired).await;
    bodies.push(answer.refusal());
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"a reference is a link of this gateway that names nothing","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    400 {"error":{"message":"a reference is an upload that has expired","type":"invalid_request_error","code":null,"param":"image_urls","provider":"easel"}}
    "#);
    app.finish().await;
}
