//! Guessed keys and links, counted per address of the guesser.

use reqwest::Method;
use serde_json::Value;

use crate::harness::{
    TestApp,
    caller::{Answer, Caller, http_client},
};

const LIMITS: &str = "[server]\nfailures_per_minute_max = 3";
const LIMITED: &str = "Rate limit exceeded. Please try again later";

/// Sends a request as a proxy on this machine does, for the client at an address.
async fn ask(app: &TestApp, address: &str, path: &str, key: Option<&str>) -> Answer {
    let request = http_client().get(format!("{}{path}", app.url));
    let request = request.header("x-forwarded-for", address);
    Answer::of(match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    })
    .await
}

#[tokio::test]
async fn only_the_address_that_guesses_keys_is_limited() {
    let app = TestApp::with(LIMITS).await;
    let caller = app.caller("1").await;
    let balance = "/v1/balance";
    for n in 0..3 {
        let key = format!("sk_guess{n}");
        assert_eq!(
            ask(&app, "203.0.113.1", balance, Some(&key)).await.status,
            401
        );
    }

    let answer = ask(&app, "203.0.113.1", balance, Some("sk_guess")).await;

    insta::assert_json_snapshot!(answer.refused(429), @r#"
    {
      "error": {
        "code": 429,
        "message": "Rate limit exceeded. Please try again later",
        "param": null,
        "provider": "easel",
        "type": "rate_limit_error"
      }
    }
    "#);
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds), "{seconds}");
    assert_eq!(ask(&app, "203.0.113.1", balance, None).await.status, 429);
    // A valid key behind the same address still works.
    let good = ask(&app, "203.0.113.1", balance, Some(&caller.key)).await;
    assert_eq!(good.status, 200);
    assert_eq!(ask(&app, "203.0.113.2", balance, None).await.status, 401);
    // Neighbours in a /64 count as one.
    for n in 0..3 {
        ask(&app, &format!("2001:db8::{n}"), balance, None).await;
    }
    assert_eq!(ask(&app, "2001:db8::9", balance, None).await.status, 429);
    app.finish().await;
}

#[tokio::test]
async fn guessing_links_is_limited_and_valid_links_keep_working() {
    let app = TestApp::with(LIMITS).await;
    let caller = app.caller("1").await;
    let upload = caller.upload(crate::harness::images::png(), "a.png").await;
    let good = upload.json()["url"].as_str().unwrap().replace(&app.url, "");
    let guesses = [
        "/f/image/9990000123456-a1b2c3d4-photo.jpg",
        "/v1/images/files/gpt-image-2/20260616/0123-1.png",
        "/f/object/nowhere",
    ];
    for guess in guesses {
        assert_eq!(ask(&app, "203.0.113.1", guess, None).await.status, 404);
    }
    for guess in guesses {
        ask(&app, "203.0.113.1", guess, None)
            .await
            .assert_refused(429, LIMITED);
    }
    assert_eq!(ask(&app, "203.0.113.1", &good, None).await.status, 200);
    // Other unknown paths may be requested without a limit.
    assert_eq!(ask(&app, "203.0.113.1", "/nowhere", None).await.status, 404);
    app.finish().await;
}

async fn error_of(caller: &Caller, address: &str) -> Value {
    let request = caller.request(Method::GET, "/v1/balance");
    let request = request.header("x-forwarded-for", address);
    Answer::of(request).await.json()["error"]["message"].clone()
}

#[tokio::test]
async fn only_trusted_proxies_can_name_a_client() {
    let app = TestApp::with(&format!("{LIMITS}\ntrusted_proxies = ['192.0.2.0/24']")).await;
    let mut stranger = app.caller("1").await;
    stranger.key = "sk_guess".to_owned();
    for n in 0..3 {
        assert_eq!(
            error_of(&stranger, &format!("203.0.113.{n}")).await,
            "invalid API key"
        );
    }
    assert_eq!(error_of(&stranger, "203.0.113.9").await, LIMITED);
    app.finish().await;
}
