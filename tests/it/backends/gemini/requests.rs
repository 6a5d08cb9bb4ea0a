//! The requests that the upstream gets.

use easel::{
    backend::BackendError,
    image::{AspectRatio, Format, Quality, Resolution},
};
use serde_json::json;

use super::{FakeUpstream, Gemini, generate, generate_with, input, wanted};
use crate::harness::images;

#[tokio::test]
async fn the_prompt_comes_first_and_references_follow() {
    let server = Gemini::start().await;
    let jpeg = images::image(image::ImageFormat::Jpeg);
    let mut request = wanted(&server, 1);
    request.quality = Some(Quality::High);
    request.options.insert("background".into(), "opaque".into());
    request.references = vec![
        input(Format::Png, &images::png()),
        input(Format::Jpeg, &jpeg),
    ];

    let (collected, result) = generate(&server, &request).await;

    result.unwrap();
    let base64 = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
    let expected = json!({
        "contents": [{"role": "user", "parts": [
            {"text": "a heron"},
            {"inlineData": {"mimeType": "image/png", "data": base64(&images::png())}},
            {"inlineData": {"mimeType": "image/jpeg", "data": base64(&jpeg)}}]}],
        "generationConfig": {"responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": "16:9", "imageSize": "1K"}}});
    let [call] = &server.calls()[..] else {
        panic!("one call is enough");
    };
    assert_eq!(call.json(), expected);
    assert_eq!(
        call.path,
        "/v1beta/models/gemini-3-pro-image:generateContent"
    );
    assert_eq!(images::size_of(&collected.images[0]), (1376, 768));
}

#[tokio::test]
async fn every_ratio_is_known_to_the_upstream() {
    let server = Gemini::start().await;
    let mut request = wanted(&server, 1);
    for ratio in AspectRatio::all() {
        for resolution in [Resolution::OneK, Resolution::TwoK] {
            request.ratio = ratio;
            request.resolution = resolution;
            generate(&server, &request).await.1.unwrap();
        }
    }
    let sent: Vec<_> = server
        .calls()
        .iter()
        .map(|call| call.fields["generationConfig"]["imageConfig"]["imageSize"].clone())
        .collect();
    assert_eq!(sent[..2], ["1K", "2K"]);
}

#[tokio::test]
async fn a_size_is_sent_only_if_the_model_supports_it() {
    let server = Gemini::start().await;
    let mut request = wanted(&server, 1);
    request.model = "gemini-2.5-flash-image".into();
    let (_, result) = generate(&server, &request).await;
    assert!(
        matches!(result, Err(BackendError::Invalid { .. })),
        "{result:?}"
    );
    generate_with(&server.settings_with("[]"), &request)
        .await
        .1
        .unwrap();

    request.resolution = Resolution::TwoK;
    generate_with(&server.settings_with(r#"["1K"]"#), &request)
        .await
        .1
        .unwrap();
    let sent = &server.calls()[2].fields;
    let expected = json!({"aspectRatio": "16:9"});
    assert_eq!(sent["generationConfig"]["imageConfig"], expected);
}

#[tokio::test]
async fn extra_fields_are_merged_into_nested_objects() {
    let server = Gemini::start().await;
    let mut request = wanted(&server, 1);
    let extra = json!({"generationConfig": {"imageConfig": {"imageSize": "2K"}}});
    request.extra = extra.as_object().unwrap().clone();
    generate(&server, &request).await.1.unwrap();
    let sent = &server.calls()[0].fields;
    let expected = json!({"responseModalities": ["IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"}});
    assert_eq!(sent["generationConfig"], expected);
}

#[tokio::test]
async fn oversized_and_unsupported_inputs_are_named_and_not_sent() {
    let server = Gemini::start().await;
    let large = images::png_of(7 * 1024 * 1024 + 1);
    let gif = images::image(image::ImageFormat::Gif);
    for (format, bytes, expected) in [
        (
            Format::Png,
            &large,
            "reference image 2 has 7340033 bytes; this model takes 7340032 at most",
        ),
        (
            Format::Gif,
            &gif,
            "reference image 2 is a GIF; this model takes PNG, JPEG and WebP",
        ),
    ] {
        let mut request = wanted(&server, 1);
        request.references = vec![input(Format::Png, &images::png()), input(format, bytes)];
        let (_, result) = generate(&server, &request).await;
        let Err(BackendError::Invalid { message }) = result else {
            panic!("{result:?}");
        };
        assert_eq!(message, expected);
    }
    assert_eq!(server.asked(), 0);

    let mut request = wanted(&server, 1);
    request.references = vec![input(Format::Png, &images::png()); 13];
    let just = images::png_of(7 * 1024 * 1024);
    request.references.push(input(Format::Png, &just));
    generate(&server, &request).await.1.unwrap();
    assert_eq!(server.inputs().len(), 14);
}
