//! Bodies: JSON and forms are equivalent, anything else is refused, and all have a size limit.

use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;

use super::{FAILING, READING, body, understood};
use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    images::png,
};

const PATH: &str = "/v1/images/generations?async=1";

async fn send(caller: &Caller, content_type: Option<&str>, body: impl Into<Vec<u8>>) -> Answer {
    let mut request = caller.request(Method::POST, PATH).body(body.into());
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    Answer::of(request).await
}

#[tokio::test]
async fn json_is_accepted_under_any_content_type_that_clients_use() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    for content_type in [
        None,
        Some("application/json"),
        Some("application/json; charset=utf-8"),
        Some("Application/JSON"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let answer = send(&caller, content_type, body(json!({})).to_string()).await;
        assert_eq!(answer.status, 202, "{content_type:?} {answer:?}");
    }
    let other = send(&caller, Some("application/xml"), "<a/>").await;
    let message = "unsupported content type, allowed: application/json, multipart/form-data";
    other.assert_refused(415, message);
    app.finish().await;
}

#[tokio::test]
async fn anything_but_a_json_object_is_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    for text in [
        "",
        "{",
        "[]",
        "\"a\"",
        "null",
        "{\"model\": gpt}",
        "{} trailing",
        "\u{0}",
    ] {
        let answer = send(&caller, Some("application/json"), text).await;
        assert_eq!(answer.status, 400, "{text} {answer:?}");
        let error = &answer.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("malformed JSON: "), "{message}");
        assert_eq!(error["code"], "invalid_json");
    }
    let not_utf8 = send(&caller, None, b"{\"prompt\":\"\xff\"}".to_vec()).await;
    assert_eq!(not_utf8.status, 400, "{not_utf8:?}");
    app.finish().await;
}

#[tokio::test]
async fn a_form_is_equivalent_to_json_in_any_order() {
    let app = TestApp::with(READING).await;
    let caller = app.caller("9").await;
    let file = || Part::bytes(png()).file_name("a.png");
    let form = Form::new()
        .part("image[]", file())
        .text("n", "2")
        .part("image", file())
        .text("output_compression", "80")
        .part("image[0]", file())
        .text("size", "1536x1024")
        .part(
            "image[1]",
            file().mime_str("application/octet-stream").unwrap(),
        )
        .text("quality", "low")
        .text("prompt", "a cat")
        .part("image[]", file())
        .text("model", "gpt-image-2");

    let answer = caller.post_form("/v1/images/edits?async=1", form).await;

    assert_eq!(answer.status, 202, "{answer:?}");
    let request = understood(&app, answer.json()["id"].as_str().unwrap()).await;
    assert_eq!(request["n"], 2);
    assert_eq!(
        (&request["ratio"], &request["quality"]),
        (&json!("3:2"), &json!("low"))
    );
    assert_eq!(request["references"].as_array().unwrap().len(), 5);
    assert_eq!(request["options"], json!({"output_compression": 80}));
    app.finish().await;
}

#[tokio::test]
async fn links_in_a_form_are_references_too() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    let link = "https://images.invalid/a.png";
    for name in [
        "image",
        "image[]",
        "image[0]",
        "image_urls",
        "image_urls[]",
        "image_input",
    ] {
        let form = Form::new()
            .text("model", "gpt-image-2")
            .text("prompt", "a cat")
            .text(name, link);
        let answer = caller.post_form(PATH, form).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let request = understood(&app, answer.json()["id"].as_str().unwrap()).await;
        assert!(
            request["references"].to_string().contains(link),
            "{name} {request}"
        );
    }
    let form = Form::new()
        .text("model", "gpt-image-2")
        .text("prompt", "a cat")
        .text(
            "image_urls",
            format!("[\"{link}\", {{\"url\": \"{link}\"}}]"),
        );
    let answer = caller.post_form(PATH, form).await;
    let request = understood(&app, answer.json()["id"].as_str().unwrap()).await;
    assert_eq!(request["references"].as_array().unwrap().len(), 2);
    app.finish().await;
}

#[tokio::test]
async fn forms_are_refused_like_json() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let base = || {
        Form::new()
            .text("model", "gpt-image-2")
            .text("prompt", "a cat")
    };
    let text = Part::bytes(b"plain".to_vec()).file_name("a.png");
    let mask = Part::bytes(png()).file_name("mask.png");
    for (form, param, message) in [
        (
            Form::new().text("model", "gpt-image-2"),
            "prompt",
            "prompt is required",
        ),
        (
            base().text("n", "1.5"),
            "n",
            "n must be an integer from 1 to 10",
        ),
        (
            base().part("mask", mask),
            "mask",
            "the model gpt-image-2 takes no mask",
        ),
        (
            base().part("image", text),
            "image",
            "unsupported image type: application/octet-stream, allowed: jpeg, png, gif, webp",
        ),
    ] {
        let answer = caller.post_form(PATH, form).await;
        answer.assert_refused_field(400, param, message);
    }
    let mut many = base();
    for _ in 0..65 {
        many = many.text("x", "y");
    }
    let answer = caller.post_form(PATH, many).await;
    answer.assert_refused(400, "a form may have 64 parts");
    let broken = send(&caller, Some("multipart/form-data; boundary=x"), "--x\r\n").await;
    assert_eq!(broken.status, 400, "{broken:?}");
    app.finish().await;
}

#[tokio::test]
async fn a_json_body_has_a_limit() {
    let app = TestApp::with(&format!("[server]\njson_bytes_max = 4096\n{FAILING}")).await;
    let caller = app.caller("9").await;
    let of_size = |bytes: usize| {
        let empty = body(json!({"x": ""})).to_string();
        body(json!({"x": "x".repeat(bytes - empty.len())})).to_string()
    };

    assert_eq!(send(&caller, None, of_size(4096)).await.status, 202);
    let message = "body size 4097 exceeds maximum 4096 bytes";
    send(&caller, None, of_size(4097))
        .await
        .assert_refused(413, message);
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(of_size(4097))]);
    let chunked = caller
        .request(Method::POST, PATH)
        .body(reqwest::Body::wrap_stream(chunks));
    Answer::of(chunked).await.assert_refused(413, message);
    app.finish().await;
}
