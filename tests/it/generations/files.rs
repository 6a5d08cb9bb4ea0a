//! The images: their links, the targets of the links, and images inside the answer.

use easel::config::InlineImages;
use insta::assert_json_snapshot;
use serde_json::json;

use super::body;
use crate::harness::{
    TestApp,
    account::Account,
    caller::{Answer, Caller, http_client},
    images::size_of,
    redact::redacted,
};

const PATH: &str = "/v1/images/generations";

async fn link_of(caller: &Caller) -> String {
    let answer = caller.generate("a cat").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["data"][0]["url"].as_str().unwrap().to_owned()
}

async fn target(link: &str) -> String {
    let redirect = Answer::of(http_client().get(link)).await;
    assert_eq!(redirect.status, 302, "{redirect:?}");
    redirect.header("location").unwrap().to_owned()
}

#[tokio::test]
async fn a_sync_answer_has_its_links() {
    let _redacted = redacted();
    let app = TestApp::start().await;
    let caller = app.caller("1").await;

    let answer = caller.generate("a cat").await;

    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_json_snapshot!(answer.json(), @r#"
    {
      "created": [time],
      "data": [
        {
          "url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png"
        }
      ],
      "id": "[task]"
    }
    "#);
    let asked = body(json!({"response_format": "b64_json"}));
    let inline = caller.post(PATH, &asked).await;
    assert_eq!(inline.header("cache-control"), Some("no-store"));
    assert_json_snapshot!(inline.json(), { ".data[].b64_json" => "[base64]" }, @r#"
    {
      "created": [time],
      "data": [
        {
          "b64_json": "[base64]",
          "url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png"
        }
      ],
      "id": "[task]"
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn a_link_leads_to_the_bytes_without_a_key() {
    let app = TestApp::start().await;
    let link = link_of(&app.caller("1").await).await;

    let shown = target(&link).await;
    let image = Answer::of(http_client().get(&shown)).await;
    assert_eq!(image.header("content-type"), Some("image/png"));
    assert_eq!(image.header("content-disposition"), Some("inline"));
    assert_eq!(image.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(size_of(&image.body), (1024, 1024));

    let saved = target(&format!("{link}?download=1")).await;
    let saved = Answer::of(http_client().get(&saved)).await;
    let disposition = saved.header("content-disposition").unwrap();
    assert!(
        disposition.starts_with("attachment; filename=\""),
        "{disposition}"
    );
    assert!(disposition.ends_with("-1.png\""), "{disposition}");
    assert_eq!(saved.body, image.body);
    app.finish().await;
}

#[tokio::test]
async fn links_may_be_cached_for_less_time_than_they_live() {
    let app = TestApp::start().await;
    let link = link_of(&app.caller("1").await).await;
    let max_age = |answer: &Answer| -> u64 {
        let cache = answer.header("cache-control").unwrap();
        let age = cache.strip_prefix("private, max-age=");
        age.unwrap_or_else(|| panic!("{cache}")).parse().unwrap()
    };
    let redirect = Answer::of(http_client().get(&link)).await;
    // A client that is redirected from a cache still has half of the ten minutes.
    assert!((290..=300).contains(&max_age(&redirect)), "{redirect:?}");
    let shown = redirect.header("location").unwrap();
    let image = Answer::of(http_client().get(shown)).await;
    assert!((590..=600).contains(&max_age(&image)), "{image:?}");
    app.app.clock.advance(std::time::Duration::from_secs(400));
    let later = Answer::of(http_client().get(shown)).await;
    assert!((190..=200).contains(&max_age(&later)), "{later:?}");
    app.finish().await;
}

#[tokio::test]
async fn an_altered_link_is_not_found() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let link = link_of(&caller).await;
    let date = link.rsplit('/').nth(1).unwrap();
    let file_id = link.rsplit('/').next().unwrap().trim_end_matches("-1.png");
    for wrong in [
        link.replace("gpt-image-2", "gpt-image-1"),
        link.replace(date, "20010101"),
        link.replace(file_id, "3e0c77bb-9cbd-4c44-9549-bff1b4060623"),
        link.replace("-1.png", "-0.png"),
        link.replace("-1.png", "-2.png"),
        link.replace("-1.png", "-01.png"),
        link.replace("-1.png", "-99999999999999999999.png"),
        link.replace("-1.png", "-1.jpg"),
        link.replace("-1.png", "-1"),
        link.replace("-1.png", ".png"),
        link.replace("/gpt-image-2", ""),
    ] {
        caller.get(&wrong).await.assert_refused(404, "no such file");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_address_behind_a_link_cannot_be_forged_and_ends_soon() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let link = link_of(&caller).await;
    let shown = target(&link).await;
    let (expiry, rest) = shown
        .rsplit_once("/f/object/")
        .unwrap()
        .1
        .split_once('-')
        .unwrap();
    let later = expiry.parse::<u64>().unwrap() + 1;
    for forged in [
        shown.replace(expiry, &later.to_string()),
        shown.replace(".png", ".jpg"),
        format!("{shown}/evil.html"),
        format!(
            "{}/f/object/{expiry}-{}",
            app.url,
            rest.replacen('/', "0/", 1)
        ),
        format!("{}/f/object/x", app.url),
    ] {
        caller
            .get(&forged)
            .await
            .assert_refused(404, "no such file");
    }
    let ttl = 600;
    app.app.clock.advance(std::time::Duration::from_secs(ttl));
    caller.get(&shown).await.assert_refused(404, "no such file");
    assert_eq!(
        caller.get(&target(&link).await).await.status,
        200,
        "the link itself lasts"
    );
    app.finish().await;
}

/// Whether an answer contains the image beside its link; asserts that both are the same.
async fn is_inline(caller: &Caller, fields: serde_json::Value) -> bool {
    let answer = caller.post(PATH, &body(fields)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let mut inline = false;
    for image in body["data"].as_array().unwrap() {
        let behind = target(image["url"].as_str().unwrap()).await;
        if let Some(text) = image["b64_json"].as_str() {
            let decoded = base64_simd::STANDARD.decode_to_vec(text).unwrap();
            assert_eq!(decoded, caller.get(&behind).await.body);
            inline = true;
        }
    }
    inline
}

#[tokio::test]
async fn images_are_inline_where_they_are_requested() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    assert!(is_inline(&caller, json!({"response_format": "b64_json", "n": 2})).await);
    assert!(!is_inline(&caller, json!({"response_format": "url"})).await);
    assert!(!is_inline(&caller, json!({})).await);
    app.finish().await;
}

#[tokio::test]
async fn the_setting_of_a_key_overrides_the_default() {
    for (setting, key, unasked, asked) in [
        ("always", None, true, true),
        ("never", None, false, false),
        ("never", Some(InlineImages::Always), true, true),
        ("always", Some(InlineImages::Never), false, false),
        ("always", Some(InlineImages::OnRequest), false, true),
    ] {
        let app = TestApp::with(&format!("[images]\ninline_images = '{setting}'")).await;
        let account = Account::with("9").key(|limits| limits.inline_images = key);
        let caller = app.create(account).await;
        assert_eq!(
            is_inline(&caller, json!({})).await,
            unasked,
            "{setting} {key:?}"
        );
        let asking = json!({"response_format": "b64_json"});
        assert_eq!(is_inline(&caller, asking).await, asked, "{setting} {key:?}");
        app.finish().await;
    }
}
