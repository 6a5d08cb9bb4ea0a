//! Uploads: what is accepted, the exact error for what is refused, and how the bytes are served.

mod refused;
mod serving;

use image::ImageFormat;
use insta::assert_json_snapshot;
use reqwest::multipart::{Form, Part};

use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    images::{image, png},
    redact::redacted,
};

/// Uploads a file and returns its link.
async fn link_of(caller: &Caller, bytes: Vec<u8>, file_name: &str) -> String {
    let answer = caller.upload(bytes, file_name).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["url"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_answer_is_the_upload_object() {
    let _redacted = redacted();
    let app = TestApp::start().await;
    let caller = app.caller("0").await;

    let answer = caller.upload(png(), "photo.png").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_json_snapshot!(body, { ".bytes" => "[bytes]" }, @r#"
    {
      "bytes": "[bytes]",
      "content_type": "image/png",
      "created_at": [time],
      "expires_at": [time],
      "filename": "photo.png",
      "url": "https://HOST/f/image/[name]-photo.png"
    }
    "#);
    assert_eq!(body["bytes"], png().len());
    let lives = body["expires_at"].as_i64().unwrap() - body["created_at"].as_i64().unwrap();
    assert_eq!(lives, 72 * 3600);
    app.finish().await;
}

#[tokio::test]
async fn all_four_formats_come_back_byte_for_byte() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    for (format, content_type) in [
        (ImageFormat::Jpeg, "image/jpeg"),
        (ImageFormat::Png, "image/png"),
        (ImageFormat::WebP, "image/webp"),
        (ImageFormat::Gif, "image/gif"),
    ] {
        let bytes = image(format);
        let answer = caller.upload(bytes.clone(), "x").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["content_type"], content_type);
        let served = caller.get(answer.json()["url"].as_str().unwrap()).await;
        assert_eq!(
            (served.status, served.header("content-type")),
            (200, Some(content_type))
        );
        assert_eq!(served.body, bytes, "{content_type}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_type_is_decided_by_the_bytes() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let file = Part::bytes(image(ImageFormat::Jpeg))
        .file_name("photo.png")
        .mime_str("text/html")
        .unwrap();

    let answer = caller
        .post_form("/v1/uploads/images", Form::new().part("file", file))
        .await;

    let body = answer.json();
    assert_eq!(
        (&body["content_type"], &body["filename"]),
        (&"image/jpeg".into(), &"photo.png".into())
    );
    let served = caller.get(body["url"].as_str().unwrap()).await;
    assert_eq!(served.header("content-type"), Some("image/jpeg"));
    app.finish().await;
}

#[tokio::test]
async fn hostile_file_names_are_made_safe() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    for (given, shown, in_url) in [
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png", "cat.png"),
        ("<script>alert(1)</script>.png", "script.png", "script.png"),
        ("a b?c#d%2f.png", "a bc#d2f.png", "a_bc_d2f.png"),
        ("猫.png", "猫.png", "_.png"),
        ("a\u{202E}gnp.exe", "agnp.exe", "agnp.exe"),
        ("..", "image.png", "image.png"),
    ] {
        let answer = caller.upload(png(), given).await;
        assert_eq!(answer.status, 200, "{given:?} {answer:?}");
        let body = answer.json();
        assert_eq!(body["filename"], shown, "{given:?}");
        let url = body["url"].as_str().unwrap();
        assert!(url.ends_with(&format!("-{in_url}")), "{given:?} {url}");
        assert_eq!(caller.get(url).await.status, 200, "{url}");
    }
    let long = format!("{}.png", "x".repeat(5000));
    let url = link_of(&caller, png(), &long).await;
    assert!(url.len() < 300, "{url}");
    app.finish().await;
}

#[tokio::test]
async fn other_parts_are_skipped_and_the_first_file_counts() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let part = |bytes: Vec<u8>, name: &str| Part::bytes(bytes).file_name(name.to_owned());
    let form = Form::new()
        .text("purpose", "vision")
        .part("other", part(b"%PDF-1.7".to_vec(), "a.pdf"))
        .part("file", part(png(), "first.png"))
        .part("file", part(png(), "second.png"));

    let answer = caller.post_form("/uploads/images", form).await;

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["filename"], "first.png");
    app.finish().await;
}

#[tokio::test]
async fn an_upload_ends_after_72_hours_and_its_bytes_are_deleted() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let link = link_of(&caller, png(), "a.png").await;
    let stored = || walk(&app.app.config.data_dir.join("objects/uploads"));
    let minutes = |minutes: u64| std::time::Duration::from_mins(minutes);

    app.app.clock.advance(minutes(72 * 60 - 1));
    assert_eq!(caller.get(&link).await.status, 200);
    assert_eq!(app.sweep().await, 0, "it is still good");

    app.app.clock.advance(minutes(1));
    let gone = caller.get(&link).await;
    assert_json_snapshot!(gone.refused(410), @r#"
    {
      "error": {
        "code": null,
        "message": "this upload has expired",
        "param": null,
        "provider": "easel",
        "type": "not_found_error"
      }
    }
    "#);
    let head = Answer::of(caller.request(reqwest::Method::HEAD, &link)).await;
    assert_eq!(head.status, 410);

    assert_eq!(stored().len(), 1);
    app.app.clock.advance(minutes(60));
    assert_eq!(app.sweep().await, 1);
    assert_eq!(stored(), Vec::<std::path::PathBuf>::new());
    assert_eq!(app.sweep().await, 0, "once is enough");
    caller
        .get(&link)
        .await
        .assert_refused(410, "this upload has expired");
    app.finish().await;
}

/// All files below a directory.
fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
