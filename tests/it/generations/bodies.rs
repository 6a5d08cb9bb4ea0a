//! Bodies: JSON and forms are equivalent, anything else is refused, and all have a size limit.

use insta::{assert_json_snapshot, assert_snapshot};
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
    assert_json_snapshot!(other.refused(415), @r#"
    {
      "error": {
        "code": null,
        "message": "unsupported content type, allowed: application/json, multipart/form-data",
        "param": null,
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn anything_but_a_json_object_is_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
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
        bodies.push(answer.refusal());
    }
    let not_utf8 = send(&caller, None, b"{\"prompt\":\"\xff\"}".to_vec()).await;
    bodies.push(not_utf8.refusal());
    let fields = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(256));
    bodies.push(send(&caller, None, fields).await.refusal());
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"malformed JSON: EOF while parsing a value at line 1 column 0","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: EOF while parsing an object at line 1 column 1","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: invalid type: sequence, expected an object at line 1 column 0","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: invalid type: string \"a\", expected an object at line 1 column 3","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: invalid type: null, expected an object at line 1 column 4","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: expected value at line 1 column 11","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: trailing characters at line 1 column 4","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: expected value at line 1 column 1","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed JSON: invalid unicode code point at line 1 column 12","type":"invalid_request_error","code":"invalid_json","param":null,"provider":"easel"}}
    400 {"error":{"message":"a body may have 256 fields","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    "#);
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
    let not_utf8 = Part::bytes(vec![0xff_u8]);
    let mut many = base();
    for _ in 0..65 {
        many = many.text("x", "y");
    }
    let mut bodies = Vec::new();
    for form in [
        Form::new().text("model", "gpt-image-2"),
        base().text("n", "1.5"),
        base().part("mask", mask),
        base().part("image", text),
        base().part("prompt", not_utf8),
        many,
    ] {
        bodies.push(caller.post_form(PATH, form).await.refusal());
    }
    let broken = send(&caller, Some("multipart/form-data; boundary=x"), "--x\r\n").await;
    bodies.push(broken.refusal());
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"prompt is required","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"n must be an integer from 1 to 10","type":"invalid_request_error","code":null,"param":"n","provider":"easel"}}
    400 {"error":{"message":"the model gpt-image-2 takes no mask","type":"invalid_request_error","code":null,"param":"mask","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: application/octet-stream, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"image","provider":"easel"}}
    400 {"error":{"message":"a text part is not UTF-8","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"a form may have 64 parts","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: it ends before its last boundary","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    "#);
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
    let refused = send(&caller, None, of_size(4097)).await.refused(413);
    assert_json_snapshot!(refused, @r#"
    {
      "error": {
        "code": null,
        "message": "body size 4097 exceeds maximum 4096 bytes",
        "param": null,
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(of_size(4097))]);
    let chunked = caller
        .request(Method::POST, PATH)
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(Answer::of(chunked).await.refused(413), refused);
    app.finish().await;
}
