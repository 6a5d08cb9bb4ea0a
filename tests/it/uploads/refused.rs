//! The exact errors of uploads, and that nothing of a refused upload is kept.

use image::ImageFormat;
use insta::{assert_json_snapshot, assert_snapshot};
use reqwest::multipart::{Form, Part};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    images::{image, png, png_claiming, png_of},
};

const BYTES_MAX: usize = 20_971_520;

async fn form(caller: &Caller, form: Form) -> Answer {
    caller.post_form("/v1/uploads/images", form).await
}

#[tokio::test]
async fn a_form_without_a_file_is_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let file = Part::bytes(png()).file_name("a.png");
    let mut bodies = Vec::new();
    for given in [
        Form::new().text("purpose", "vision"),
        Form::new().text("file", "https://example.com/a.png"),
        Form::new().part("image", file),
    ] {
        bodies.push(form(&caller, given).await.refusal());
    }
    let json = caller
        .post("/v1/uploads/images", &json!({"file": "a"}))
        .await;
    bodies.push(json.refusal());
    let bare = Answer::of(caller.request(reqwest::Method::POST, "/v1/uploads/images")).await;
    bodies.push(bare.refusal());
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"400 {"error":{"message":"missing or invalid file field: http: no such file","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}"#);
    app.finish().await;
}

#[tokio::test]
async fn other_types_are_refused_by_name() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let mut bodies = Vec::new();
    for bytes in [
        &b"%PDF-1.7\n%\xE2\xE3\xCF\xD3\n"[..],
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"PK\x03\x04\x14\0\0\0",
        b"BM\x36\0\0\0\0\0\0\0",
        b"plain text",
        b"\0\0\0\x20ftypheic\0\0\0\0",
    ] {
        let file = Part::bytes(bytes.to_vec())
            .file_name("photo.png")
            .mime_str("image/png")
            .unwrap();
        let answer = form(&caller, Form::new().part("file", file)).await;
        bodies.push(answer.refusal());
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"unsupported image type: application/pdf, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: image/svg+xml, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: text/html, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: application/zip, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: image/bmp, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: application/octet-stream, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"unsupported image type: image/heif, allowed: jpeg, png, gif, webp","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    "#);
    app.finish().await;
}

#[tokio::test]
async fn damaged_and_oversized_images_are_refused_and_nothing_is_kept() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let mut files = vec![
        Vec::new(),
        b"\x89PNG\r\n\x1A\n".to_vec(),
        b"GIF89a/*js*/=1;alert(1)//".to_vec(),
        png_claiming(0, 7),
        png_claiming(65535, 65535),
        png_claiming(16384, 16384),
    ];
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Gif,
    ] {
        let whole = image(format);
        files.push(whole[..whole.len() / 2].to_vec());
        files.push(whole[..whole.len() - 2].to_vec());
    }
    let mut bodies = Vec::new();
    for bytes in files {
        bodies.push(caller.upload(bytes, "a.png").await.refusal());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"the image is damaged or cut off","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"the image is 10799x29546 pixels; allowed are 16384 a side and 50000000 in all","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"the image is damaged or cut off","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"the image is 16384x16384 pixels; allowed are 16384 a side and 50000000 in all","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"the image is damaged or cut off","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    "#);
    assert_eq!(kept(&app), Vec::<std::path::PathBuf>::new());
    app.finish().await;
}

#[tokio::test]
async fn a_polyglot_is_served_as_an_image() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let script = b"<script>alert(document.domain)</script>PK\x05\x06";
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Gif] {
        let bytes = [&image(format)[..], script].concat();
        let answer = caller.upload(bytes, "evil.html").await;
        if answer.status != 200 {
            answer.assert_refused_field(400, "file", "the image is damaged or cut off");
            continue;
        }
        let served = caller.get(answer.json()["url"].as_str().unwrap()).await;
        let content_type = served.header("content-type").unwrap();
        assert!(content_type.starts_with("image/"), "{served:?}");
        assert_eq!(served.header("x-content-type-options"), Some("nosniff"));
    }
    app.finish().await;
}

#[tokio::test]
async fn twenty_mebibytes_are_accepted_and_one_byte_more_is_not() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;

    let taken = caller.upload(png_of(BYTES_MAX), "big.png").await;
    assert_eq!(taken.status, 200, "{taken:?}");
    assert_eq!(taken.json()["bytes"], BYTES_MAX);

    let refused = caller.upload(png_of(BYTES_MAX + 1), "big.png").await;
    assert_json_snapshot!(refused.refused(413), @r#"
    {
      "error": {
        "code": null,
        "message": "file size 20971521 exceeds maximum 20971520 bytes",
        "param": "file",
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    assert_eq!(kept(&app).len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_client_still_sending_reads_the_413_and_the_real_size() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let file = png_of(24 << 20);
    let head = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n";
    let body = [head.as_bytes(), &file, b"\r\n--x--\r\n"].concat();

    let answer = send(&caller, "multipart/form-data; boundary=x", &body).await;

    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let message = "file size 25165824 exceeds maximum 20971520 bytes";
    assert!(answer.contains(message), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn a_client_still_sending_reads_why_its_key_is_refused() {
    let app = TestApp::start().await;
    let mut caller = app.caller("0").await;
    caller.key = "sk_wrong".to_owned();

    let answer = send(&caller, "multipart/form-data; boundary=x", &png_of(8 << 20)).await;

    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    app.finish().await;
}

/// Sends a whole body before it reads anything; closing the connection early would break it.
async fn send(caller: &Caller, content_type: &str, body: &[u8]) -> String {
    let address = caller.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/uploads/images HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        caller.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn malformed_forms_are_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let mut bodies = Vec::new();
    for (parameters, body) in [
        ("", "--x--".to_owned()),
        ("; boundary=x", String::new()),
        (
            "; boundary=x",
            "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nGIF"
                .to_owned(),
        ),
        ("; boundary=x", "--xy\r\n\r\n\r\n--x--".to_owned()),
        ("; boundary=x", "--x\r\nfile\r\n\r\n\r\n--x--".to_owned()),
        ("; boundary=x", format!("--x\r\na: {}", "b".repeat(20_000))),
    ] {
        let request = caller
            .request(reqwest::Method::POST, "/v1/uploads/images")
            .header("content-type", format!("multipart/form-data{parameters}"))
            .body(body);
        bodies.push(Answer::of(request).await.refusal());
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"malformed multipart body: it has no boundary","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: it ends before its last boundary","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: it ends before its last boundary","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: a boundary must stand on a line of its own","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: a part's head has a line without a colon","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"malformed multipart body: the head of a part exceeds maximum 16384 bytes","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    "#);
    assert_eq!(kept(&app), Vec::<std::path::PathBuf>::new());
    app.finish().await;
}

/// The stored files of uploads.
fn kept(app: &TestApp) -> Vec<std::path::PathBuf> {
    super::walk(&app.app.config.data_dir.join("objects"))
        .into_iter()
        .filter(|path| path.extension().is_some())
        .collect()
}
