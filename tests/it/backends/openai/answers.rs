//! How successful answers of the upstream are read.

use easel::backend::BackendError;
use serde_json::json;

use super::{backend, generate, request};
use crate::harness::upstream::{Reply, Upstream, image};

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn large_images_arrive_complete() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let large = [noise(3_000_001), noise(1_500_002)];
    upstream.next(Reply::images(&large));
    let (images, result) = generate(&backend, &request(2)).await;
    result.unwrap();
    assert!(images == large);
}

#[tokio::test]
async fn missing_images_are_tolerated_and_extra_ones_dropped() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let three = [noise(10), noise(70), noise(1000)];

    upstream.next(Reply::images(&three));
    let (images, result) = generate(&backend, &request(4)).await;
    result.unwrap();
    assert_eq!(images, three);

    upstream.next(Reply::images(&three));
    let (images, result) = generate(&backend, &request(2)).await;
    result.unwrap();
    assert_eq!(images, three[..2]);
}

#[tokio::test]
async fn links_are_fetched_without_the_key() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let link = format!("{}/files/image.png", upstream.url);
    let data_url = format!(
        "data:image/png;base64,{}",
        base64_simd::STANDARD.encode_to_string("data")
    );
    upstream.next(Reply::links(&[&link, &data_url]));

    let (images, result) = generate(&backend, &request(2)).await;

    result.unwrap();
    // Images inside the answer are delivered before those that must be fetched.
    assert_eq!(images, [b"data".to_vec(), image(64, 64, 0)]);
    let fetched = &upstream.calls()[1];
    assert_eq!(fetched.path, "/files/image.png");
    assert_eq!(fetched.header("authorization"), None);
}

#[tokio::test]
async fn an_image_that_was_delivered_is_not_fetched_again() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let link = format!("{}/files/image.png", upstream.url);
    let entry = json!({"url": link, "b64_json": "aGVsbG8="});
    upstream.next(Reply::json(200, &json!({"created": 1, "data": [entry]})));

    let (images, result) = generate(&backend, &request(2)).await;

    result.unwrap();
    assert_eq!(images, [b"hello"]);
    assert_eq!(upstream.calls().len(), 1);
}

#[tokio::test]
async fn a_link_may_redirect_to_where_it_could_have_pointed() {
    let upstream = Upstream::start().await;
    let link = format!("{}/files/moved.png", upstream.url);
    upstream.next(Reply::links(&[&link]));
    let (images, result) = generate(&backend(&upstream, ""), &request(1)).await;
    result.unwrap();
    assert_eq!(images, [image(64, 64, 0)]);
    let fetched = &upstream.calls()[2];
    assert_eq!(fetched.path, "/files/image.png");
    assert_eq!(fetched.header("authorization"), None);
}

#[tokio::test]
async fn links_elsewhere_are_not_followed() {
    let upstream = Upstream::start().await;
    let other = Upstream::start().await;
    let backend = backend(&upstream, r#"download_hosts = ["*.example"]"#);
    for link in [
        format!("{}/files/image.png", other.url),
        format!("{}/files/image.png", other.url)
            .replace("http:", "https:")
            .replace("127.0.0.1", "localhost"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://example/image.png".to_owned(),
        "file:///etc/passwd".to_owned(),
        format!("{}/files/away.png", upstream.url),
        format!("{}/files/round.png", upstream.url),
        format!("{}/files/nowhere.png", upstream.url),
        format!("{}/files/expired.png", upstream.url),
    ] {
        upstream.next(Reply::links(&[&link]));
        let (images, result) = generate(&backend, &request(1)).await;
        let Err(BackendError::NoImage { detail }) = result else {
            panic!("{link}: {result:?}");
        };
        assert!(images.is_empty() && !detail.contains("/files/"), "{detail}");
    }
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn a_failed_link_may_have_been_paid_for() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, r#"download_hosts = ["localhost:1"]"#);
    let good = format!("{}/files/image.png", upstream.url);
    for bad in [
        format!("{}/files/broken.png", upstream.url),
        // Nothing listens on this port.
        "https://localhost:1/image.png".to_owned(),
    ] {
        upstream.next(Reply::links(&[&good, &bad]));
        let (images, result) = generate(&backend, &request(2)).await;
        assert!(
            matches!(
                result,
                Err(BackendError::Failed { .. } | BackendError::OutcomeUnknown { .. })
            ),
            "{result:?}"
        );
        assert_eq!(images, [image(64, 64, 0)]);
    }
}

#[tokio::test]
async fn an_answer_without_an_image_is_reported_as_such() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    for reply in [
        Reply::json(200, &json!({"created": 1, "data": []})),
        Reply::json(200, &json!({"created": 1, "data": null})),
        Reply::json(200, &json!({"created": 1})),
        Reply::json(200, &json!({"data": [{"b64_json": "", "url": null}]})),
        Reply::json(200, &json!({"error": {"message": "later"}})),
        Reply::json(200, &json!(["aGVs"])),
        Reply::bytes("text/html", b"<html>It works!</html>".to_vec()),
        Reply::bytes("application/json", Vec::new()),
        Reply::bytes("application/json", b"[".repeat(100_000)),
    ] {
        upstream.next(reply);
        let (images, result) = generate(&backend, &request(1)).await;
        assert!(
            matches!(result, Err(BackendError::NoImage { .. })),
            "{result:?}"
        );
        assert!(images.is_empty());
    }
    let filtered =
        json!({"created": 1, "error": {"code": "contentFilter", "message": "Filtered."}});
    upstream.next(Reply::json(200, &filtered));
    let (_, result) = generate(&backend, &request(1)).await;
    assert!(matches!(result, Err(BackendError::Refused { message }) if message == "Filtered."));
}

#[tokio::test]
async fn images_before_the_connection_broke_count() {
    let upstream = Upstream::start().await;
    let backend = backend(&upstream, "");
    let two = [noise(200_000), noise(200_000)];
    let whole = Reply::images(&two);
    let length = whole.length();
    upstream.next(whole.cut_at(length * 3 / 4));

    let (images, result) = generate(&backend, &request(2)).await;

    assert!(
        matches!(result, Err(BackendError::OutcomeUnknown { .. })),
        "{result:?}"
    );
    assert!(images == two[..1]);
}
