//! A gateway with ComfyUI: what clients get, and what happens to a worker's prompt when the worker dies.

use serde_json::json;

use super::{
    Comfyui,
    contract::{FakeUpstream, Scenario},
};
use crate::harness::{
    TestApp, caller::Answer, database::TestDatabase, images::size_of, process::Setup,
};

/// Settings with `server` as the upstream of the default model.
fn generated_by(server: &Comfyui, more: &str) -> String {
    let (backend, model) = (server.settings(), server.model());
    format!(
        "{more}\n[backends.comfy]\n{backend}\n[models.gpt-image-2]\n\
         routes = [{{ backend = \"comfy\", upstream_model = \"{model}\" }}]\n"
    )
}

#[tokio::test]
async fn delivered_images_do_not_contain_their_workflow() {
    let server = Comfyui::start().await;
    let app = TestApp::with(&generated_by(&server, "")).await;
    let caller = app.caller("1").await;
    let body = json!({"model": "gpt-image-2", "prompt": "a heron", "n": 2, "size": "16:9",
        "response_format": "b64_json"});

    let answer = caller.post("/v1/images/generations", &body).await;

    assert_eq!(answer.status, 200, "{answer:?}");
    let shown: Vec<Vec<u8>> = images(&answer);
    assert_eq!(shown.len(), 2);
    for image in &shown {
        assert_eq!(size_of(image), (1344, 768));
        assert!(!image.windows(7).any(|bytes| bytes == b"a heron"));
    }
    // The stored file did contain it.
    let kept = server.state().files.values().last().unwrap().clone();
    assert!(kept.windows(7).any(|bytes| bytes == b"a heron"));
    assert_eq!(caller.balance().await["balance"], 0.6);
    app.finish().await;
}

#[test]
fn the_settings_check_reports_a_faulty_workflow() {
    let check = |workflow: &str| {
        let backend = format!("[backends.comfy]\nkind = 'comfyui'\ntext_workflow = '{workflow}'");
        let settings = format!("{backend}\n[models.m]\nroutes = ['comfy']\n");
        Setup::new(&settings).run(&["config", "check"])
    };
    check("builtin:text-to-image").good();
    let errors = check("builtin:flux").bad();
    assert_eq!(errors.matches("text_workflow").count(), 1, "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_of_a_killed_worker_is_resumed_by_the_next() {
    let (database, server) = (TestDatabase::create().await, Comfyui::start().await);
    let settings = generated_by(&server, "[tasks]\nlease_ms = 1000");
    server.play(Scenario::Hangs);
    let first = Setup::on(&database, &settings).serve();
    let caller = database.caller(&first.url(), "1").await;
    let body = json!({"model": "gpt-image-2", "prompt": "a bridge"});
    let accepted = caller.post("/v1/images/generations?async=1", &body).await;
    let id = accepted.json()["task_id"].as_str().unwrap().to_owned();
    server.wait_for_polls(1).await;
    first.kill();

    server.play(Scenario::Generates);
    let second = Setup::on(&database, &settings).serve();
    let task = caller.at(&second.url()).wait_for(&id).await;

    assert_eq!(task["status"], "completed", "{task}");
    assert_eq!(server.asked(), 1, "the prompt was submitted twice");
    second.end();
    database.assert_invariants().await;
}

fn images(answer: &Answer) -> Vec<Vec<u8>> {
    let body = answer.json();
    let images = body["data"].as_array().unwrap().iter().map(|entry| {
        let base64 = entry["b64_json"].as_str().unwrap();
        base64_simd::STANDARD.decode_to_vec(base64).unwrap()
    });
    images.collect()
}
