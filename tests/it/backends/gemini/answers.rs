//! How answers are read: refusals with HTTP 200, drafts, text, errors, and oversized bodies.

use std::time::Duration;

use easel::backend::BackendError;
use serde_json::{Value, json};

use super::{
    FakeUpstream, Gemini, backend_of, generate,
    server::{KEY, REFUSED_PROMPT, answer, error, image},
    wanted,
};

async fn answered(server: &Gemini, status: u16, body: &Value) -> BackendError {
    server.next(status, body);
    let (collected, result) = generate(server, &wanted(server, 1)).await;
    assert!(collected.images.is_empty());
    result.unwrap_err()
}

#[tokio::test]
async fn refusals_with_status_200_are_reported() {
    let server = Gemini::start().await;
    for reason in [
        "SAFETY",
        "OTHER",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "IMAGE_SAFETY",
    ] {
        let body = json!({"promptFeedback": {"blockReason": reason}});
        let refused = answered(&server, 200, &body).await;
        assert!(
            matches!(&refused, BackendError::Refused { message } if message == reason),
            "{refused:?}"
        );
    }
    for reason in [
        "SAFETY",
        "PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "RECITATION",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    ] {
        // As the real API answers: a content without parts.
        let body = json!({"candidates": [{"content": {"role": "model"}, "finishReason": reason,
            "finishMessage": "Unable to show the image.\nSee https://x.example/policy", "index": 0}]});
        let refused = answered(&server, 200, &body).await;
        let BackendError::Refused { message } = refused else {
            panic!("{reason}: {refused:?}");
        };
        assert_eq!(message, "Unable to show the image. See [link]");
    }
    let mut request = wanted(&server, 1);
    request.prompt = REFUSED_PROMPT.to_owned();
    let (_, result) = generate(&server, &request).await;
    assert!(
        matches!(result, Err(BackendError::Refused { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn an_answer_without_an_image_is_not_a_refusal() {
    let server = Gemini::start().await;
    let text = json!({"text": "the prompt again"});
    for body in [
        answer(std::slice::from_ref(&text), "STOP"),
        answer(&[text], "NO_IMAGE"),
        answer(&[], "IMAGE_OTHER"),
        answer(&[], "FINISH_REASON_UNSPECIFIED"),
        json!({"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}, "candidates": null}),
        json!({}),
        json!([1]),
        json!("text"),
    ] {
        let error = answered(&server, 200, &body).await;
        let BackendError::NoImage { detail } = &error else {
            panic!("{body}: {error:?}");
        };
        assert!(!detail.contains("prompt again"), "{detail}");
    }
}

/// The flag follows the image, which has been forwarded by then.
#[tokio::test]
async fn drafts_are_not_delivered() {
    let server = Gemini::start().await;
    let draft = |bytes: &[u8]| {
        let mut part = image(bytes);
        part["thought"] = true.into();
        part
    };
    let thinks = json!({"text": "first", "thought": true});
    let large = vec![b'd'; 300_000];
    let candidates = [thinks, draft(&large), draft(b"second"), image(b"the image")];
    server.next(200, &answer(&candidates, "STOP"));
    let (collected, result) = generate(&server, &wanted(&server, 1)).await;
    result.unwrap();
    assert_eq!(collected.images, [b"the image"]);

    // Other servers with this API omit the flag.
    let unflagged = [
        image(b"draft"),
        image(b"the image"),
        json!({"text": "done"}),
    ];
    server.next(200, &answer(&unflagged, "STOP"));
    let (collected, _) = generate(&server, &wanted(&server, 1)).await;
    assert_eq!(collected.images, [b"the image"]);

    // It thought, but did not generate.
    let (collected, result) = {
        server.next(200, &answer(&[draft(b"draft")], "NO_IMAGE"));
        generate(&server, &wanted(&server, 1)).await
    };
    assert!(
        matches!(result, Err(BackendError::NoImage { .. })),
        "{result:?}"
    );
    assert!(collected.images.is_empty() && collected.under_way.is_empty());
    let refused = answered(&server, 200, &answer(&[draft(b"draft")], "IMAGE_SAFETY")).await;
    assert!(
        matches!(refused, BackendError::Refused { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn usage_is_passed_on() {
    let server = Gemini::start().await;
    let (collected, result) = generate(&server, &wanted(&server, 1)).await;
    result.unwrap();
    assert_eq!(collected.usage.len(), 1);
    assert_eq!(collected.usage[0]["candidatesTokenCount"], 1120);
}

#[tokio::test]
async fn the_retry_delay_is_read_from_the_body() {
    let server = Gemini::start().await;
    let info = |delay: &str| {
        json!([{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}])
    };
    for (code, status, delay, expected) in [
        (
            429,
            "RESOURCE_EXHAUSTED",
            "3.29s",
            Some(Duration::from_millis(3290)),
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "41s",
            Some(Duration::from_secs(41)),
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "999999s",
            Some(Duration::from_hours(1)),
        ),
        (429, "RESOURCE_EXHAUSTED", "soon", None),
        (503, "UNAVAILABLE", "1s", Some(Duration::from_secs(1))),
    ] {
        let error = answered(&server, code, &error(code, status, "Slow.", &info(delay))).await;
        let BackendError::RateLimited { retry_after, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(retry_after, expected, "{delay}");
    }
}

#[tokio::test]
async fn errors_are_classified_by_the_reaction_they_need() {
    let server = Gemini::start().await;
    for (code, status, class) in [
        (400, "INVALID_ARGUMENT", "Invalid"),
        (400, "FAILED_PRECONDITION", "Credentials"),
        (403, "PERMISSION_DENIED", "Credentials"),
        (404, "NOT_FOUND", "Invalid"),
        (500, "INTERNAL", "Failed"),
        (504, "DEADLINE_EXCEEDED", "Failed"),
    ] {
        let message = format!("No: {KEY}, see https://ai.example/.");
        let error = answered(&server, code, &error(code, status, &message, &json!([]))).await;
        let error = format!("{error:?}");
        assert!(error.starts_with(class), "{code} {status}: {error}");
        assert!(!error.contains(KEY) && !error.contains("https"), "{error}");
    }
    let wrong = server.settings().replace(KEY, "AIza-wrong");
    let checked = backend_of(&wrong).check().await;
    assert!(
        matches!(checked, Err(BackendError::Credentials { .. })),
        "{checked:?}"
    );
    // A server that lists no models is still reachable.
    let bare = server.settings().replace("/v1beta", "/other");
    backend_of(&bare).check().await.unwrap();
}

#[tokio::test]
async fn oversized_answers_are_not_read_to_the_end() {
    let server = Gemini::start().await;
    let many = vec![image(b"draft"); 40];
    let text = vec![json!({"text": "x".repeat(2 << 20)})];
    for parts in [many, text] {
        let (collected, result) = {
            server.next(200, &answer(&parts, "STOP"));
            generate(&server, &wanted(&server, 1)).await
        };
        assert!(
            matches!(
                result,
                Err(BackendError::Failed { .. } | BackendError::NoImage { .. })
            ),
            "{result:?}"
        );
        assert!(collected.images.is_empty());
    }
    // A signature may be longer than its image.
    let mut signed = image(b"the image");
    signed["thoughtSignature"] = "c2ln".repeat(1 << 20).into();
    server.next(200, &answer(&[signed], "STOP"));
    let (collected, result) = generate(&server, &wanted(&server, 1)).await;
    result.unwrap();
    assert_eq!(collected.images, [b"the image"]);
}
