//! The `sdapi` backend against a stand-in for the web UI.

mod stand_in;

use easel::{
    backend::{BackendError, Drawing},
    image::{Format, ImageSize},
};
use serde_json::{Value, json};

use super::{
    Collected, backend_of,
    contract::{StandIn, keeps_its_promises},
    drawing, input,
};
use crate::harness::pictures;
use stand_in::WebUi;

/// Draws it, and gives the pictures and what the server was asked for.
async fn drawn_at(server: &WebUi, more: &str, drawing: &Drawing) -> (Vec<Vec<u8>>, String, Value) {
    let mut collected = Collected::default();
    let backend = backend_of(&server.settings_with(more));
    backend.draw(drawing, &mut collected).await.unwrap();
    let (path, body) = server.received().pop().unwrap();
    (collected.pictures, path, body)
}

fn large() -> Drawing {
    Drawing {
        size: ImageSize {
            width: 256,
            height: 128,
        },
        ..drawing(1)
    }
}

fn size_of(picture: &[u8]) -> (u32, u32) {
    let decoded = image::load_from_memory(picture).unwrap();
    (decoded.width(), decoded.height())
}

#[tokio::test]
async fn it_keeps_the_promises_of_a_backend() {
    keeps_its_promises(&WebUi::start().await).await;
}

#[tokio::test]
async fn words_become_pictures_of_the_models_own_size_and_then_larger() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.n = 3;
    wanted.model = "herons_v2".into();
    wanted.extra = json!({"steps": 12, "sampler_name": "Euler"})
        .as_object()
        .unwrap()
        .clone();

    let (pictures, path, body) = drawn_at(&server, "", &wanted).await;

    assert_eq!(path, "txt2img");
    assert_eq!(
        body,
        json!({"prompt": "a heron", "width": 88, "height": 48, "batch_size": 3,
            "override_settings": {"sd_model_checkpoint": "herons_v2"},
            "enable_hr": true, "hr_resize_x": 256, "hr_resize_y": 128, "denoising_strength": 0.6,
            "steps": 12, "sampler_name": "Euler"})
    );
    assert_eq!(pictures.len(), 3);
    assert!(
        pictures
            .iter()
            .all(|picture| size_of(picture) == (256, 128))
    );
}

#[tokio::test]
async fn pictures_stay_as_the_model_draws_them_where_they_are_not_to_grow() {
    let server = WebUi::start().await;
    let off = server.settings().replace("\"hires\"", "\"off\"");
    let mut collected = Collected::default();
    backend_of(&off)
        .draw(&large(), &mut collected)
        .await
        .unwrap();
    assert_eq!(size_of(&collected.pictures[0]), (88, 48));

    // Nothing to enlarge.
    let (pictures, _, body) = drawn_at(&server, "", &drawing(1)).await;
    assert_eq!(size_of(&pictures[0]), (88, 48));
    assert_eq!(body.get("enable_hr"), None);
}

#[tokio::test]
async fn a_reference_is_cut_not_bent_and_what_is_clear_in_the_mask_is_white() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.references = vec![input(Format::Png, &pictures::png())];
    wanted.mask = Some(input(Format::Png, &pictures::mask_of(500)));

    let (drawn, path, body) = drawn_at(&server, "", &wanted).await;

    assert_eq!(
        (path.as_str(), &body["resize_mode"]),
        ("img2img", &json!(1))
    );
    assert_eq!(body.get("enable_hr"), None);
    assert_eq!(size_of(&drawn[0]), (88, 48));
    let mask = base64_simd::STANDARD
        .decode_to_vec(body["mask"].as_str().unwrap())
        .unwrap();
    let mask = image::load_from_memory(&mask).unwrap().into_luma8();
    for (x, _, pixel) in mask.enumerate_pixels() {
        assert_eq!(pixel.0[0], if x < 4 { 255 } else { 0 });
    }

    // One without an alpha channel is of their kind already.
    wanted.mask = Some(input(Format::Png, &pictures::png()));
    let (_, _, body) = drawn_at(&server, "", &wanted).await;
    let mask = base64_simd::STANDARD
        .decode_to_vec(body["mask"].as_str().unwrap())
        .unwrap();
    let grey = image::load_from_memory(&pictures::png())
        .unwrap()
        .into_luma8();
    assert_eq!(image::load_from_memory(&mask).unwrap().into_luma8(), grey);
}

#[tokio::test]
async fn a_broken_mask_is_the_clients_fault() {
    let server = WebUi::start().await;
    let mut wanted = large();
    wanted.references = vec![input(Format::Png, &pictures::png())];
    for mask in [b"junk".to_vec(), pictures::png_claiming(60_000, 60_000)] {
        wanted.mask = Some(input(Format::Png, &mask));
        let mut collected = Collected::default();
        let drawn = backend_of(&server.settings())
            .draw(&wanted, &mut collected)
            .await;
        assert!(
            matches!(drawn, Err(BackendError::Invalid { .. })),
            "{drawn:?}"
        );
    }
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn what_the_server_repeats_is_no_picture_and_does_no_harm() {
    let server = WebUi::start().await;
    server.withhold(1);
    let mut wanted = drawing(2);
    // More than the rest of an answer may have.
    wanted.references = vec![input(Format::Png, &pictures::png_of(3_000_000))];

    let (pictures, _, _) = drawn_at(&server, "", &wanted).await;

    assert_eq!(pictures.len(), 1, "the reference came back as a picture");
    assert_eq!(size_of(&pictures[0]), (88, 48));
}

#[tokio::test]
async fn no_settings_come_out_of_a_prompt() {
    let server = WebUi::start().await;
    let mut wanted = drawing(1);
    wanted.prompt = "a heron<sd_cpp_extra_args>{\"steps\":1000}</sd_cpp_extra_args>".into();
    let (_, _, body) = drawn_at(&server, "", &wanted).await;
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
    assert!(server.received().is_empty());
}
