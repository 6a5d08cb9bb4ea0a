//! The requests that the upstream gets.

use std::{io, sync::Arc};

use easel::{
    backend::{BackendError, Input},
    image::{Format, Quality},
};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};

use super::{backend, backend_of, generate, input, options, request};
use crate::harness::upstream::{self, File, Upstream, image};

#[tokio::test]
async fn a_generation_is_json_with_only_known_fields() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, r#"forward = ["background", "moderation"]"#);
    let mut request = request(2);
    request.quality = Some(Quality::High);
    request.options = options(
        json!({"background": "opaque", "user": "u", "style": "vivid",
        "response_format": "b64_json", "resolution": "1k", "image_urls": []}),
    );

    let (images, result) = generate(&backend, &request).await;

    result.unwrap();
    assert_eq!(images, [image(64, 32, 0), image(64, 32, 1)]);
    let [received] = &upstream.calls()[..] else {
        panic!("one call expected");
    };
    assert_eq!(received.path, "/v1/images/generations");
    assert_eq!(received.header("content-type"), Some("application/json"));
    assert_eq!(received.header("accept"), Some("application/json"));
    let bearer = format!("Bearer {}", upstream::KEY);
    assert_eq!(received.header("authorization"), Some(bearer.as_str()));
    assert_eq!(
        Value::Object(received.fields.clone()),
        json!({"model": "gpt-image-2", "prompt": "a heron", "n": 2, "size": "64x32",
            "quality": "high", "background": "opaque"})
    );
}

#[tokio::test]
async fn one_reference_is_an_edit_with_one_image() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, r#"forward = ["output_compression", "user"]"#);
    let reference = image(48, 48, 3);
    let mut request = request(1);
    request.references = vec![input(Format::Png, &reference)];
    request.options = options(json!({"output_compression": 80, "user": null}));

    let (images, result) = generate(&backend, &request).await;

    result.unwrap();
    assert_eq!(images, [image(64, 32, 0)]);
    let received = &upstream.calls()[0];
    assert_eq!(received.path, "/v1/images/edits");
    assert_eq!(
        Value::Object(received.fields.clone()),
        json!({"model": "gpt-image-2", "prompt": "a heron", "n": "1", "size": "64x32",
            "output_compression": "80"})
    );
    let file = File {
        name: "image".into(),
        filename: "image-1.png".into(),
        content_type: "image/png".into(),
        bytes: reference.into(),
    };
    assert_eq!(received.files, [file]);
    assert!(
        received.header("content-length").is_some(),
        "the length is known"
    );
}

#[tokio::test]
async fn three_references_and_a_mask_follow_the_text() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let mut jpeg = b"\xff\xd8\xff\xe0".to_vec();
    jpeg.resize(5000, 7);
    let mask = image(48, 48, 0);
    let mut request = request(1);
    request.references = vec![
        input(Format::Png, &image(16, 16, 1)),
        input(Format::Jpeg, &jpeg),
        input(Format::Webp, b"RIFF    WEBP"),
    ];
    request.mask = Some(input(Format::Png, &mask));

    generate(&backend, &request).await.1.unwrap();

    let received = &upstream.calls()[0];
    let texts = ["model", "n", "prompt", "size"];
    let files = ["image[]", "image[]", "image[]", "mask"];
    assert_eq!(received.parts, [texts, files].concat());
    let names: Vec<_> = received
        .files
        .iter()
        .map(|file| file.filename.as_str())
        .collect();
    assert_eq!(
        names,
        ["image-1.png", "image-2.jpg", "image-3.webp", "mask.png"]
    );
    assert_eq!(received.files[1].bytes, jpeg);
    assert_eq!(received.files[3].bytes, mask);
}

#[tokio::test]
async fn an_unreadable_reference_is_not_the_upstreams_fault() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let unopened: Input = Input {
        open: Arc::new(|| async { Err(io::Error::from(io::ErrorKind::NotFound)) }.boxed()),
        ..input(Format::Png, &image(16, 16, 1))
    };
    let cut_off = Input {
        open: Arc::new(|| {
            let pieces = [Ok("a piece".into()), Err(io::Error::other("gone"))];
            async move { Ok(stream::iter(pieces).boxed()) }.boxed()
        }),
        ..unopened.clone()
    };
    for reference in [unopened, cut_off] {
        let mut request = request(1);
        request.references = vec![reference];
        let (_, result) = generate(&backend, &request).await;
        assert!(matches!(result, Err(BackendError::Input(_))), "{result:?}");
    }
    assert!(upstream.calls().is_empty());
}

#[tokio::test]
async fn base_urls_may_end_in_a_slash_and_upstreams_may_want_no_key() {
    let upstream = Upstream::start().await;
    let settings = format!(
        "kind = \"openai\"\nbase_url = \"{}/v1/\"\napi_key = \"\"",
        upstream.url
    );
    let (_, result) = generate(&backend_of(&settings), &request(1)).await;
    assert!(
        matches!(result, Err(BackendError::Credentials { .. })),
        "{result:?}"
    );
    let received = &upstream.calls()[0];
    assert_eq!(received.path, "/v1/images/generations");
    assert_eq!(received.header("authorization"), None);
}
