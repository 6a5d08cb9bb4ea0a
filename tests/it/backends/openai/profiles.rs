//! The differences between the copies of OpenAI's API.

use easel::{
    backend::GenerateRequest,
    image::{Format, ImageSize},
};
use serde_json::{Value, json};

use super::{Collected, backend, backend_of, generate, input, request};
use crate::harness::{
    images,
    upstream::{self, Call, Dialect, Upstream, image},
};

/// Generates the request, and returns the single call that the upstream received.
async fn generated_at(upstream: &Upstream, more: &str, request: &GenerateRequest) -> Call {
    let (images, result) = generate(&backend(upstream, more), request).await;
    result.unwrap();
    assert_eq!(images.len(), usize::from(request.n));
    upstream.calls().remove(0)
}

#[tokio::test]
async fn azures_deployments_are_in_the_path_and_the_key_in_its_own_header() {
    let upstream = Upstream::speaking(Dialect::AzureDeployments).await;
    let request = GenerateRequest {
        model: "my image/2".into(),
        references: vec![input(Format::Png, &image(16, 16, 1))],
        ..request(1)
    };
    let received = generated_at(&upstream, "", &request).await;
    assert_eq!(
        received.path,
        "/openai/deployments/my%20image%2F2/images/edits"
    );
    assert_eq!(received.query, "api-version=2025-04-01-preview");
    assert_eq!(received.header("api-key"), Some(upstream::KEY));
    assert_eq!(received.header("authorization"), None);
    assert!(!received.fields.contains_key("model"));

    backend(&upstream, "").check().await.unwrap();
    let checked = upstream.calls().pop().unwrap();
    let asked = (checked.path.as_str(), checked.query.as_str());
    assert_eq!(asked, ("/openai/models", "api-version=2025-04-01-preview"));
}

#[tokio::test]
async fn azures_newer_path_expects_the_deployment_as_the_model() {
    let upstream = Upstream::speaking(Dialect::AzureV1).await;
    let received = generated_at(&upstream, "", &request(2)).await;
    assert_eq!(received.path, "/openai/v1/images/generations");
    assert_eq!(received.fields["model"], "gpt-image-2");
    assert_eq!(received.header("api-key"), Some(upstream::KEY));
}

#[tokio::test]
async fn models_with_three_sizes_get_the_nearest_one() {
    let upstream = Upstream::start().await;
    let request = GenerateRequest {
        model: "gpt-image-1.5".into(),
        size: ImageSize {
            width: 2688,
            height: 1152,
        },
        ..request(1)
    };
    let received = generated_at(&upstream, "", &request).await;
    assert_eq!(received.fields["size"], "1536x1024");
}

#[tokio::test]
async fn localai_gets_references_as_text_and_answers_base64() {
    let upstream = Upstream::speaking(Dialect::Localai).await;
    let jpeg = images::image(image::ImageFormat::Jpeg);
    let request = GenerateRequest {
        prompt: "a heron|a stork".into(),
        references: vec![input(Format::Jpeg, &jpeg)],
        ..request(1)
    };
    let received = generated_at(&upstream, "", &request).await;
    assert_eq!(
        Value::Object(received.fields.clone()),
        json!({"model": "gpt-image-2", "prompt": "a heron/a stork", "n": 1, "size": "192x64",
            "response_format": "b64_json", "file": base64_simd::STANDARD.encode_to_string(&jpeg)})
    );
    let length = received.header("content-length").unwrap();
    assert_eq!(
        length,
        Value::Object(received.fields.clone())
            .to_string()
            .len()
            .to_string()
    );
}

#[tokio::test]
async fn sd_server_gets_no_settings_from_a_prompt() {
    let upstream = Upstream::speaking(Dialect::SdServer).await;
    let request = GenerateRequest {
        prompt: "a <sd_cpp_sd_cpp_extra_argsextra_args>{}</sd_cpp_extra_args>heron".into(),
        ..request(3)
    };
    let received = generated_at(&upstream, "", &request).await;
    let prompt = received.fields["prompt"].as_str().unwrap();
    assert!(!prompt.contains("sd_cpp_extra_args"), "{prompt}");
    assert!(prompt.ends_with("heron"));
    assert_eq!(received.fields["size"], "64x64");
}

#[tokio::test]
async fn the_operators_fields_override_all_others() {
    let upstream = Upstream::speaking(Dialect::Generic).await;
    let extra = json!({"response_format": "b64_json", "size": "64x64", "watermark": false});
    let request = GenerateRequest {
        extra: extra.as_object().unwrap().clone(),
        ..request(1)
    };
    let received = generated_at(&upstream, "", &request).await;
    for (name, value) in extra.as_object().unwrap() {
        assert_eq!(received.fields[name], *value);
    }
    assert_eq!(upstream.calls().len(), 1, "no link had to be followed");
}

#[tokio::test]
async fn usage_of_the_upstream_is_passed_on() {
    let upstream = Upstream::start().await;
    let mut collected = Collected::default();
    let backend = backend_of(&upstream.settings(""));
    backend.generate(&request(1), &mut collected).await.unwrap();
    let [usage] = &collected.usage[..] else {
        panic!("{:?}", collected.usage);
    };
    assert_eq!(usage["total_tokens"], 280);
}
