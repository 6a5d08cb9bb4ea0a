//! A gateway with a backend that generates one image per call.

use serde_json::{Value, json};

use super::{contract::FakeUpstream, server::Gemini};
use crate::harness::TestApp;

async fn app(server: &Gemini) -> TestApp {
    let (backend, model) = (server.settings(), server.model());
    let route = format!("{{ backend = 'google', upstream_model = '{model}' }}");
    let settings =
        format!("[backends.google]\n{backend}\n[models.gpt-image-2]\nroutes = [{route}]\n");
    TestApp::with(&settings).await
}

#[tokio::test]
async fn several_images_take_several_calls_and_delivered_ones_are_charged() {
    let server = Gemini::start().await;
    let app = app(&server).await;
    let caller = app.caller("2").await;
    let body = json!({"model": "gpt-image-2", "prompt": "a heron", "n": 3});

    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let links: Vec<Value> = answer.json()["data"].as_array().unwrap().clone();
    assert_eq!(links.len(), 3);
    for (index, link) in links.iter().enumerate() {
        let link = link["url"].as_str().unwrap();
        assert!(link.ends_with(&format!("-{}.png", index + 1)), "{link}");
    }
    assert_eq!(server.asked(), 3);
    assert_eq!(caller.balance().await["balance"], 1.4);

    // One of the calls is refused: the other images are delivered, and nothing is retried.
    server.next(200, &json!({"promptFeedback": {"blockReason": "SAFETY"}}));
    let answer = caller.post("/v1/images/generations", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(server.asked(), 6);
    assert_eq!(caller.balance().await["balance"], 1.0);
    let mut conn = app.database.connect().await;
    let calls: i64 = sqlx::query_scalar(
        "SELECT sum(jsonb_array_length(usage))::bigint FROM tasks WHERE usage IS NOT NULL",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert!(calls >= 5, "{calls} calls say what they have taken");
    app.finish().await;
}
