//! How errors of the upstream are classified.

use std::time::Duration;

use easel::backend::BackendError;
use tokio::net::TcpListener;

use super::{backend, backend_of, generate, request};
use crate::harness::upstream::{KEY, REFUSED_PROMPT, Reply, Upstream};

async fn error_for(upstream: &Upstream, reply: Reply) -> BackendError {
    upstream.next(reply);
    let (images, result) = generate(&backend(upstream, ""), &request(1)).await;
    assert!(images.is_empty());
    result.unwrap_err()
}

#[tokio::test]
async fn errors_are_classified_by_the_reaction_they_need() {
    let upstream = Upstream::start().await;
    let of = |status, code, message| error_for(&upstream, Reply::error(status, code, message));

    for status in [400, 404, 413, 422] {
        let error = of(status, "invalid_value", "Invalid size\n '1x1'.").await;
        let BackendError::Invalid { message } = error else {
            panic!("{status}: {error:?}");
        };
        assert_eq!(message, "Invalid size '1x1'.");
    }
    for status in [401, 402, 403] {
        let error = of(status, "invalid_api_key", "No.").await;
        assert!(
            matches!(error, BackendError::Credentials { .. }),
            "{status}: {error:?}"
        );
    }
    for status in [408, 409, 500, 502, 503, 504] {
        let error = of(status, "server_error", "Oh.").await;
        assert!(
            matches!(error, BackendError::Failed { .. }),
            "{status}: {error:?}"
        );
    }
    let error = of(429, "insufficient_quota", "Pay.").await;
    assert!(
        matches!(error, BackendError::Credentials { .. }),
        "{error:?}"
    );
    let error = of(400, "content_policy_violation", "Not that.").await;
    assert!(matches!(error, BackendError::Refused { message } if message == "Not that."));
}

#[tokio::test]
async fn rate_limits_carry_the_retry_delay() {
    let upstream = Upstream::start().await;
    let reply = Reply::error(429, "rate_limit_exceeded", "Slow down.");
    let date = "Wed, 21 Oct 2026 07:28:00 GMT";
    let later = "Wed, 21 Oct 2026 07:28:09 GMT";
    for (reply, seconds) in [
        (reply.clone(), None),
        (reply.clone().header("retry-after", "7"), Some(7)),
        (reply.clone().header("retry-after-ms", "8000"), Some(8)),
        (
            reply.header("date", date).header("retry-after", later),
            Some(9),
        ),
    ] {
        let error = error_for(&upstream, reply).await;
        let BackendError::RateLimited { retry_after, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(retry_after, seconds.map(Duration::from_secs));
    }
}

#[tokio::test]
async fn a_refused_prompt_and_a_wrong_key_are_distinguished() {
    let upstream = Upstream::start().await;
    let mut refused = request(1);
    refused.prompt = REFUSED_PROMPT.to_owned();
    let (_, result) = generate(&backend(&upstream, ""), &refused).await;
    let Err(BackendError::Refused { message }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(message, "Your request was rejected by the safety system.");

    let settings = upstream.settings("").replace(KEY, "sk-wrong");
    let (_, result) = generate(&backend_of(&settings), &request(1)).await;
    assert!(
        matches!(result, Err(BackendError::Credentials { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn huge_and_foreign_error_bodies_are_harmless() {
    let upstream = Upstream::start().await;
    let page = Reply::bytes("text/html", vec![b'<'; 5_000_000]).status(502);
    let error = error_for(&upstream, page).await;
    assert!(matches!(error, BackendError::Failed { ref detail } if detail == "502: status 502"));

    let long = Reply::error(400, "invalid_value", &"very ".repeat(10_000));
    let error = error_for(&upstream, long).await;
    assert!(
        matches!(error, BackendError::Invalid { ref message } if message.chars().count() == 500)
    );
    let away = Reply::error(307, "moved", "").header("location", "/v1/models");
    let error = error_for(&upstream, away).await;
    assert!(matches!(error, BackendError::Failed { .. }), "{error:?}");
    assert_eq!(upstream.calls().len(), 3, "no redirect was followed");
}

#[tokio::test]
async fn no_error_contains_the_key_or_an_address() {
    let upstream = Upstream::start().await;
    let said = format!("Incorrect key {KEY}, see https://upstream.example/keys or 10.0.0.1:80");
    for status in [400, 401, 429, 500] {
        let error = error_for(&upstream, Reply::error(status, "code", &said)).await;
        assert_secretless(&error);
    }
    upstream.next(Reply::links(&[&format!(
        "https://elsewhere.example/?key={KEY}"
    )]));
    let (_, result) = generate(&backend(&upstream, ""), &request(1)).await;
    assert_secretless(&result.unwrap_err());

    let gone = upstream.settings("");
    drop(upstream);
    let (_, result) = generate(&backend_of(&gone), &request(1)).await;
    assert_secretless(&result.unwrap_err());
}

fn assert_secretless(error: &BackendError) {
    let text = format!("{error} {error:?}");
    for secret in [KEY, "http://", "https://", "10.0.0.1", "/v1/"] {
        assert!(!text.contains(secret), "{secret} in: {text}");
    }
}

#[tokio::test]
async fn an_unreachable_upstream_accepted_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings =
        format!("kind = \"openai\"\nbase_url = \"http://{address}/v1\"\napi_key = \"k\"");
    let backend = backend_of(&settings);
    let (_, result) = generate(&backend, &request(1)).await;
    assert!(
        matches!(result, Err(BackendError::Unreachable { .. })),
        "{result:?}"
    );
    let checked = backend.check().await;
    assert!(
        matches!(checked, Err(BackendError::Unreachable { .. })),
        "{checked:?}"
    );
}

#[tokio::test]
async fn a_check_lists_the_models_and_generates_nothing() {
    let upstream = Upstream::start().await;
    backend(&upstream, "").check().await.unwrap();
    // A server that lists no models is still reachable.
    let bare = upstream.settings("").replace("/v1", "/other");
    backend_of(&bare).check().await.unwrap();

    let wrong = upstream.settings("").replace(KEY, "sk-wrong");
    let checked = backend_of(&wrong).check().await;
    assert!(
        matches!(checked, Err(BackendError::Credentials { .. })),
        "{checked:?}"
    );
    let paths: Vec<_> = upstream.calls().into_iter().map(|call| call.path).collect();
    assert_eq!(paths, ["/v1/models", "/other/models", "/v1/models"]);
}
