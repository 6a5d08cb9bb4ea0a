//! What the upstream is sent.

use easel::{
    backend::BackendError,
    image::{AspectRatio, Format, Quality, Resolution},
};
use serde_json::json;

use super::{Gemini, StandIn, draw, draw_with, input, wanted};
use crate::harness::pictures;

#[tokio::test]
async fn the_prompt_comes_first_and_references_behind_it() {
    let server = Gemini::start().await;
    let jpeg = pictures::picture(image::ImageFormat::Jpeg);
    let mut drawing = wanted(&server);
    drawing.quality = Some(Quality::High);
    drawing.options.insert("background".into(), "opaque".into());
    drawing.references = vec![
        input(Format::Png, &pictures::png()),
        input(Format::Jpeg, &jpeg),
    ];

    let (collected, drawn) = draw(&server, &drawing).await;

    drawn.unwrap();
    let base64 = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
    let expected = json!({
        "contents": [{"role": "user", "parts": [
            {"text": "a heron"},
            {"inlineData": {"mimeType": "image/png", "data": base64(&pictures::png())}},
            {"inlineData": {"mimeType": "image/jpeg", "data": base64(&jpeg)}}]}],
        "generationConfig": {"responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": "16:9", "imageSize": "1K"}}});
    assert_eq!(server.server().received[0], expected);
    assert_eq!(
        server.server().paths,
        ["/v1beta/models/gemini-3-pro-image:generateContent"]
    );
    let picture = image::load_from_memory(&collected.pictures[0]).unwrap();
    assert_eq!((picture.width(), picture.height()), (1376, 768));
}

#[tokio::test]
async fn every_ratio_is_one_that_the_upstream_knows() {
    let server = Gemini::start().await;
    let mut drawing = wanted(&server);
    for ratio in AspectRatio::all() {
        for resolution in [Resolution::OneK, Resolution::TwoK] {
            drawing.ratio = ratio;
            drawing.resolution = resolution;
            draw(&server, &drawing).await.1.unwrap();
        }
    }
    let sent: Vec<_> = server
        .server()
        .received
        .iter()
        .map(|body| body["generationConfig"]["imageConfig"]["imageSize"].clone())
        .collect();
    assert_eq!(sent[..2], ["1K", "2K"]);
}

#[tokio::test]
async fn a_size_is_sent_only_where_the_model_knows_it() {
    let server = Gemini::start().await;
    let mut drawing = wanted(&server);
    drawing.model = "gemini-2.5-flash-image".into();
    let (_, drawn) = draw(&server, &drawing).await;
    assert!(
        matches!(drawn, Err(BackendError::Invalid { .. })),
        "{drawn:?}"
    );
    draw_with(&server.settings_with("[]"), &drawing)
        .await
        .1
        .unwrap();

    drawing.resolution = Resolution::TwoK;
    draw_with(&server.settings_with(r#"["1K"]"#), &drawing)
        .await
        .1
        .unwrap();
    let sent = &server.server().received[1];
    let expected = json!({"aspectRatio": "16:9"});
    assert_eq!(sent["generationConfig"]["imageConfig"], expected);
}

#[tokio::test]
async fn fields_of_the_operator_go_where_they_belong() {
    let server = Gemini::start().await;
    let mut drawing = wanted(&server);
    let extra = json!({"generationConfig": {"imageConfig": {"imageSize": "2K"}}});
    drawing.extra = extra.as_object().unwrap().clone();
    draw(&server, &drawing).await.1.unwrap();
    let sent = &server.server().received[0];
    let expected = json!({"responseModalities": ["IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"}});
    assert_eq!(sent["generationConfig"], expected);
}

#[tokio::test]
async fn what_is_too_large_or_of_the_wrong_kind_is_named_and_not_sent() {
    let server = Gemini::start().await;
    let large = pictures::png_of(7 * 1024 * 1024 + 1);
    let gif = pictures::picture(image::ImageFormat::Gif);
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
        let mut drawing = wanted(&server);
        drawing.references = vec![input(Format::Png, &pictures::png()), input(format, bytes)];
        let (_, drawn) = draw(&server, &drawing).await;
        let Err(BackendError::Invalid { message }) = drawn else {
            panic!("{drawn:?}");
        };
        assert_eq!(message, expected);
    }
    assert_eq!(server.asked(), 0);

    let mut drawing = wanted(&server);
    drawing.references = vec![input(Format::Png, &pictures::png()); 13];
    let just = pictures::png_of(7 * 1024 * 1024);
    drawing.references.push(input(Format::Png, &just));
    draw(&server, &drawing).await.1.unwrap();
    assert_eq!(server.inputs().len(), 14);
}
