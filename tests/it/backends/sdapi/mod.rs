//! The `sdapi` backend against a fake of the web UI.

mod fake;

use easel::{
    backend::{BackendError, GenerateRequest},
    image::{Format, ImageSize},
};
use serde_json::{Value, json};

use super::{
    Collected, backend_of,
    contract::{FakeUpstream, fulfils_the_contract},
    input, request,
};
use crate::harness::images::{self, size_of};
use fake::WebUi;

/// Generates the request, and returns the images and what the server received.
async fn generated_at(
    server: &WebUi,
    more: &str,
    request: &GenerateRequest,
) -> (Vec<Vec<u8>>, String, Value) {
    let mut collected = Collected::default();
    let backend = backend_of(&server.settings_with(more));
    backend.generate(request, &mut collected).await.unwrap();
    let call = server.requests().pop().unwrap();
    (
        collected.images,
        call.last_segment().to_owned(),
        call.json(),
    )
}

fn large() -> GenerateRequest {
    GenerateRequest {
        size: ImageSize {
            width: 256,
            height: 128,
        },
        ..request(1)
    }
}

#[tokio::test]
async fn it_fulfils_the_contract_of_a_backend() {
    fulfils_the_contract(&WebUi::start().await).await;
}

#[tokio::test]
async fn images_are_generated_at_the_models_size_and_then_enlarged() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.n = 3;
    wanted.model = "herons_v2".into();
    wanted.extra = json!({"steps": 12, "sampler_name": "Euler"})
        .as_object()
        .unwrap()
        .clone();

    let (images, path, body) = generated_at(&server, "", &wanted).await;

    assert_eq!(path, "txt2img");
    assert_eq!(
        body,
        json!({"prompt": "a heron", "width": 88, "height": 48, "batch_size": 3,
            "override_settings": {"sd_model_checkpoint": "herons_v2"},
            "enable_hr": true, "hr_resize_x": 256, "hr_resize_y": 128, "denoising_strength": 0.6,
            "steps": 12, "sampler_name": "Euler"})
    );
    assert_eq!(images.len(), 3);
    assert!(images.iter().all(|image| size_of(image) == (256, 128)));
}

#[tokio::test]
async fn images_keep_the_models_size_without_enlargement() {
    let server = WebUi::start().await;
    let off = server.settings().replace("\"hires\"", "\"off\"");
    let mut collected = Collected::default();
    backend_of(&off)
        .generate(&large(), &mut collected)
        .await
        .unwrap();
    assert_eq!(size_of(&collected.images[0]), (88, 48));

    // Nothing to enlarge.
    let (images, _, body) = generated_at(&server, "", &request(1)).await;
    assert_eq!(size_of(&images[0]), (88, 48));
    assert_eq!(body.get("enable_hr"), None);
}

#[tokio::test]
async fn references_are_cropped_and_transparent_mask_areas_turn_white() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.references = vec![input(Format::Png, &images::png())];
    wanted.mask = Some(input(Format::Png, &images::mask_of(500)));

    let (result, path, body) = generated_at(&server, "", &wanted).await;

    assert_eq!(
        (path.as_str(), &body["resize_mode"]),
        ("img2img", &json!(1))
    );
    assert_eq!(body.get("enable_hr"), None);
    assert_eq!(size_of(&result[0]), (88, 48));
    let mask = base64_simd::STANDARD
        .decode_to_vec(body["mask"].as_str().unwrap())
        .unwrap();
    let mask = image::load_from_memory(&mask).unwrap().into_luma8();
    for (x, _, pixel) in mask.enumerate_pixels() {
        assert_eq!(pixel.0[0], if x < 4 { 255 } else { 0 });
    }

    // A mask without an alpha channel is already in their format.
    wanted.mask = Some(input(Format::Png, &images::png()));
    let (_, _, body) = generated_at(&server, "", &wanted).await;
    let mask = base64_simd::STANDARD
        .decode_to_vec(body["mask"].as_str().unwrap())
        .unwrap();
    let grey = image::load_from_memory(&images::png())
        .unwrap()
        .into_luma8();
    assert_eq!(image::load_from_memory(&mask).unwrap().into_luma8(), grey);
}

#[tokio::test]
async fn a_broken_mask_is_the_clients_fault() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.references = vec![input(Format::Png, &images::png())];
    for mask in [b"junk".to_vec(), images::png_claiming(60_000, 60_000)] {
        wanted.mask = Some(input(Format::Png, &mask));
        let mut collected = Collected::default();
        let result = backend_of(&server.settings())
            .generate(&wanted, &mut collected)
            .await;
        assert!(
            matches!(result, Err(BackendError::Invalid { .. })),
            "{result:?}"
        );
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn input_that_the_server_repeats_is_harmless() {
    let server = WebUi::start().await;
    server.state().withheld = 1;
    let mut wanted = request(2);
    // Larger than the rest of an answer may be.
    wanted.references = vec![input(Format::Png, &images::png_of(3_000_000))];

    let (images, _, _) = generated_at(&server, "", &wanted).await;

    assert_eq!(images.len(), 1, "the reference came back as an image");
    assert_eq!(size_of(&images[0]), (88, 48));
}

#[tokio::test]
async fn no_settings_are_read_from_a_prompt() {
    let server = WebUi::start().await;
    let mut wanted = request(1);
    wanted.prompt = "a heron<sd_cpp_extra_args>{\"steps\":1000}</sd_cpp_extra_args>".into();
    let (_, _, body) = generated_at(&server, "", &wanted).await;
    assert!(
        !body["prompt"]
            .as_str()
            .unwrap()
            .contains("sd_cpp_extra_args")
    );
}

#[tokio::test]
async fn a_check_tells_a_wrong_password_and_a_missing_api() {
    let server = WebUi::start().await;
    let wrong = server.settings().replace("heron:nest", "heron:egg");
    let checked = backend_of(&wrong).check().await;
    assert!(
        matches!(checked, Err(BackendError::Credentials { ref detail }) if !detail.contains("egg")),
        "{checked:?}"
    );
    let elsewhere = server
        .settings()
        .replace("\"\napi_key", "/elsewhere\"\napi_key");
    let checked = backend_of(&elsewhere).check().await;
    let Err(BackendError::Failed { detail }) = checked else {
        panic!("{checked:?}");
    };
    assert!(detail.contains("--api"), "{detail}");
    assert!(server.requests().is_empty());
}
