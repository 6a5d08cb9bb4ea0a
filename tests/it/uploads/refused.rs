//! The exact errors of uploads, and that nothing of a refused upload is kept.

use image::ImageFormat;
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
const NO_FILE: &str = "missing or invalid file field: http: no such file";

async fn form(caller: &Caller, form: Form) -> Answer {
    caller.post_form("/v1/uploads/images", form).await
}

#[tokio::test]
async fn a_form_without_a_file_is_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let file = Part::bytes(png()).file_name("a.png");
    for given in [
        Form::new().text("purpose", "vision"),
        Form::new().text("file", "https://example.com/a.png"),
        Form::new().part("image", file),
    ] {
        let shown = format!("{given:?}");
        let answer = form(&caller, given).await;
        answer.assert_refused_field(400, "file", NO_FILE);
        assert_eq!(answer.json()["error"]["code"], json!(null), "{shown}");
    }
    let json = caller
        .post("/v1/uploads/images", &json!({"file": "a"}))
        .await;
    json.assert_refused_field(400, "file", NO_FILE);
    let bare = Answer::of(caller.request(reqwest::Method::POST, "/v1/uploads/images")).await;
    bare.assert_refused_field(400, "file", NO_FILE);
    app.finish().await;
}

#[tokio::test]
async fn other_types_are_refused_by_name() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    for (bytes, detected) in [
        (&b"%PDF-1.7\n%\xE2\xE3\xCF\xD3\n"[..], "application/pdf"),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
            "image/svg+xml",
        ),
        (b"<!doctype html><script>alert(1)</script>", "text/html"),
        (b"PK\x03\x04\x14\0\0\0", "application/zip"),
        (b"BM\x36\0\0\0\0\0\0\0", "image/bmp"),
        (b"plain text", "application/octet-stream"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "image/heif"),
    ] {
        let file = Part::bytes(bytes.to_vec())
            .file_name("photo.png")
            .mime_str("image/png")
            .unwrap();
        let answer = form(&caller, Form::new().part("file", file)).await;
        let message = format!("unsupported image type: {detected}, allowed: jpeg, png, gif, webp");
        answer.assert_refused_field(400, "file", &message);
    }
    app.finish().await;
}

#[tokio::test]
async fn damaged_and_oversized_images_are_refused_and_nothing_is_kept() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let damaged = "the image is damaged or cut off";
    let mut files: Vec<(Vec<u8>, String)> = vec![
        (Vec::new(), damaged.to_owned()),
        (b"\x89PNG\r\n\x1A\n".to_vec(), damaged.to_owned()),
        (
            b"GIF89a/*js*/=1;alert(1)//".to_vec(),
            "the image is 10799x29546 pixels; allowed are 16384 a side and 50000000 in all"
                .to_owned(),
        ),
        (png_claiming(0, 7), damaged.to_owned()),
        (
            png_claiming(65535, 65535),
            "the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
                .to_owned(),
        ),
        (
            png_claiming(16384, 16384),
            "the image is 16384x16384 pixels; allowed are 16384 a side and 50000000 in all"
                .to_owned(),
        ),
    ];
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Gif,
    ] {
        let whole = image(format);
        files.push((whole[..whole.len() / 2].to_vec(), damaged.to_owned()));
        files.push((whole[..whole.len() - 2].to_vec(), damaged.to_owned()));
    }
    for (index, (bytes, message)) in files.into_iter().enumerate() {
        let answer = caller.upload(bytes, "a.png").await;
        assert_eq!(answer.json()["error"]["message"], message, "file {index}");
        answer.assert_refused_field(400, "file", &message);
    }
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
    refused.assert_refused_field(
        413,
        "file",
        "file size 20971521 exceeds maximum 20971520 bytes",
    );
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
    for (content_type, body, message) in [
        (
            "multipart/form-data",
            "--x--",
            "malformed multipart body: it has no boundary",
        ),
        (
            "multipart/form-data; boundary=x",
            "",
            "malformed multipart body: ",
        ),
        (
            "multipart/form-data; boundary=x",
            "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nGIF",
            "malformed multipart body: ",
        ),
    ] {
        let request = caller
            .request(reqwest::Method::POST, "/v1/uploads/images")
            .header("content-type", content_type)
            .body(body);
        let answer = Answer::of(request).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        let error = answer.json();
        let shown = error["error"]["message"].as_str().unwrap();
        assert!(shown.starts_with(message), "{shown}");
    }
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
