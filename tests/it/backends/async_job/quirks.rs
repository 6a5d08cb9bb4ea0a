//! Differences between the services, and how the backend handles hostile or failing upstreams.

use easel::{
    backend::{BackendError, GenerateRequest},
    failure::Class,
    image::Format,
};
use serde_json::{Value, json};

use super::{
    super::{backend_of, contract::FakeUpstream, generate_by, generate_with, input, wanted},
    server::FakeService,
    services,
};
use crate::{
    backends::contract::Scenario,
    harness::{fake_server::Reply, images},
};

fn posts(fake: &FakeService) -> usize {
    fake.calls_by("POST").len()
}

#[tokio::test]
async fn temporary_upstream_failures_cost_no_image() {
    for service in [services::EASEL, services::BFL, services::SDCPP] {
        let fake = FakeService::start(service).await;
        let backend = backend_of(&fake.settings());
        let busy = Reply::json(429, &json!({"error": {"message": "Slower."}}));
        for reply in [
            Reply::json(500, &json!({})),
            busy.clone().header("retry-after-ms", "30"),
            Reply::json(200, &json!({"status": "pending"})).cut_at(5),
            Reply::bytes("text/html", b"<html>Back soon</html>".to_vec()),
            Reply::bytes("text/html", b"<html>Bad gateway</html>".to_vec()).status(502),
            Reply::bytes("application/json", vec![b' '; 2_000_000]),
            Reply::json(200, &json!({"status": "a new word for under way"})),
        ] {
            fake.next_look(reply);
        }
        let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
        result.unwrap();
        assert_eq!(collected.images.len(), 1);
        assert_eq!((fake.asked(), posts(&fake)), (1, 1));
    }
}

#[tokio::test]
async fn a_paid_image_is_fetched_again_until_its_first_byte() {
    let fake = FakeService::start(services::REPLICATE).await;
    let backend = backend_of(&fake.settings());
    for reply in [
        Reply::json(503, &json!({})),
        Reply::bytes("image/png", vec![7; 50]).cut_at(0),
    ] {
        fake.next_result(reply);
    }
    let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    result.unwrap();
    assert_eq!((collected.images.len(), fake.asked()), (1, 1));

    for _ in 0..20 {
        fake.next_result(Reply::json(503, &json!({})));
    }
    let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    let calls = fake.calls();
    let fetched = calls
        .iter()
        .filter(|call| call.path.starts_with("/images/"));
    assert_eq!(fetched.count(), 3 + 6);
}

#[tokio::test]
async fn a_job_unknown_to_the_upstream_has_failed() {
    let fake = FakeService::start(services::EASEL).await;
    let backend = backend_of(&fake.settings());
    for status in [404, 410] {
        let gone = Reply::json(status, &json!({"error": {"message": "No such task."}}));
        fake.next_look(gone);
        let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
        assert_eq!(result.unwrap_err().class(), Class::Failed);
    }
    let revoked = Reply::json(401, &json!({"error": {"message": "No such key."}}));
    fake.next_look(revoked);
    let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::Credentials);
}

#[tokio::test]
async fn the_key_goes_to_no_other_host() {
    let (fake, other) = (
        FakeService::start(services::BFL).await,
        FakeService::start(services::BFL).await,
    );
    let backend = backend_of(&fake.settings());
    let elsewhere = [
        format!("{}/v1/get_result?id=job_1", other.url),
        "https://bfl.ai.evil.example/v1/get_result?id=1".to_owned(),
        "https://evilbfl.ai/v1/get_result?id=1".to_owned(),
        "http://api.bfl.ai/v1/get_result?id=1".to_owned(),
        format!("{}@evil.example/", fake.url),
        "file:///etc/passwd".to_owned(),
        "job_1".to_owned(),
    ];
    for url in &elsewhere {
        let answer = json!({"id": "job_1", "polling_url": url});
        fake.next_submit(Reply::json(200, &answer));
        let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
        // It may be generating: a second request would be paid for twice.
        let error = result.unwrap_err();
        assert_eq!(error.class(), Class::OutcomeUnknown, "{url}: {error}");
        assert!(collected.jobs.is_empty() && !error.to_string().contains("get_result"));

        let resumed = GenerateRequest {
            job: Some(url.clone()),
            ..wanted(&fake, 1)
        };
        let (_, result) = generate_by(&*backend, &resumed).await;
        assert_eq!(result.unwrap_err().class(), Class::Failed, "{url}");
        backend.cancel(url).await.unwrap();
    }
    assert_eq!(fake.asked(), elsewhere.len());
    let away = Reply::json(307, &json!({})).header("location", &elsewhere[0]);
    fake.next_look(away.clone());
    let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    fake.next_submit(away);
    let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn an_accepted_request_without_a_job_id_is_not_repeated() {
    let fake = FakeService::start(services::REPLICATE).await;
    let backend = backend_of(&fake.settings());
    for answer in [
        Reply::json(201, &json!({"id": null})),
        Reply::json(201, &json!({"id": ""})),
        Reply::json(201, &json!({"id": "a b"})),
        Reply::json(201, &json!({"id": ".."})),
        Reply::json(201, &json!([])),
        Reply::bytes("text/html", b"<html>".to_vec()),
        Reply::json(201, &json!({"id": "job_1"})).cut_at(4),
    ] {
        fake.next_submit(answer);
        let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
        assert_eq!(result.unwrap_err().class(), Class::OutcomeUnknown);
        assert!(collected.jobs.is_empty());
    }
    assert_eq!(fake.asked(), 7);
}

#[tokio::test]
async fn an_unreachable_upstream_accepted_nothing() {
    let fake = FakeService::start(services::FAL).await;
    let settings = fake.settings();
    let wanted = wanted(&fake, 1);
    drop(fake);
    let backend = backend_of(&settings);
    let (_, result) = generate_by(&*backend, &wanted).await;
    assert_eq!(result.unwrap_err().class(), Class::Unreachable);
    let checked = backend.check().await;
    assert_eq!(checked.unwrap_err().class(), Class::Unreachable);
}

#[tokio::test]
async fn easel_gets_the_same_key_again_until_the_job_is_known() {
    let fake = FakeService::start(services::EASEL).await;
    let backend = backend_of(&fake.settings());
    let mut asked = wanted(&fake, 1);
    asked.references = vec![input(Format::Png, &images::png())];
    let (collected, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.usage, [json!({"cost": 0.2})]);
    let [key, known] = &collected.jobs[..] else {
        panic!("{:?}", collected.jobs);
    };
    assert_eq!(known, &format!("{key} job_1"));

    // Lost before the answer arrived: the request is repeated while the upstream is not reachable yet.
    for _ in 0..2 {
        fake.next_submit(Reply::json(503, &json!({})));
    }
    asked.job = Some("another-key".to_owned());
    let (collected, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.jobs.last().unwrap(), "another-key job_2");
    asked.job = Some(key.clone());
    let (collected, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.jobs.last(), Some(known));
    let before = posts(&fake);

    // Lost after the answer arrived: the job is only looked up.
    asked.job = Some(known.clone());
    let (collected, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    assert_eq!((collected.images.len(), posts(&fake)), (1, before));

    // The same key never creates a second image.
    asked.job = Some(key.clone());
    asked.prompt = "a crane".to_owned();
    let (_, result) = generate_by(&*backend, &asked).await;
    assert_eq!(result.unwrap_err().class(), Class::Invalid);
}

#[tokio::test]
async fn dashscope_refuses_with_status_200_too() {
    let fake = FakeService::start(services::DASHSCOPE).await;
    let backend = backend_of(&fake.settings());
    for (code, class) in [
        ("DataInspectionFailed", Class::Refused),
        ("InvalidParameter", Class::Invalid),
        ("InvalidApiKey", Class::Credentials),
        ("Throttling.RateQuota", Class::RateLimited),
        ("InternalError", Class::Failed),
    ] {
        let body = json!({"code": code, "message": "It is so.", "request_id": "r"});
        fake.next_submit(Reply::json(200, &body));
        let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
        assert_eq!(result.unwrap_err().class(), class, "{code}");
    }
    let inspected = json!({"code": "DataInspectionFailed", "message": "No.", "request_id": "r"});
    fake.next_look(Reply::json(200, &inspected));
    let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    let error = result.unwrap_err();
    assert!(
        matches!(&error, BackendError::Refused { message } if message == "No."),
        "{error}"
    );
    assert_eq!(collected.jobs.len(), 1);
}

#[tokio::test]
async fn replicate_gets_links_instead_of_long_data_urls() {
    let fake = FakeService::start(services::REPLICATE).await;
    let backend = backend_of(&fake.settings());
    let mut asked = wanted(&fake, 1);
    let (small, large) = (images::png(), images::png_of(200_000));
    asked.references = vec![input(Format::Png, &small), input(Format::Png, &large)];
    let extra = json!({"input": {"seed": 4}});
    asked.extra = extra.as_object().unwrap().clone();

    let (collected, result) = generate_by(&*backend, &asked).await;

    result.unwrap();
    assert_eq!(
        collected.usage,
        [json!({"predict_time": 4.2, "image_count": 1})]
    );
    let body = fake.calls()[0].json();
    let images = body["input"]["input_images"].as_array().unwrap();
    assert!(
        images[0]
            .as_str()
            .unwrap()
            .starts_with("data:image/png;base64,")
    );
    assert_eq!(images[1], "https://gateway.example/f/object/1-a/x");
    assert_eq!(body["input"]["seed"], 4);
    assert_eq!(body["input"]["aspect_ratio"], "2:1");
}

#[tokio::test]
async fn apimart_gets_uploads_and_a_failed_upload_buys_nothing() {
    let fake = FakeService::start(services::APIMART).await;
    let backend = backend_of(&fake.settings());
    let mut asked = wanted(&fake, 1);
    asked.references = vec![input(Format::Png, &images::png_of(300_000))];
    let (_, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    let body = fake.calls()[1].json();
    let url = body["image_urls"][0].as_str().unwrap();
    assert!(url.starts_with(&fake.url), "{url}");

    let settings = fake.settings();
    drop(fake);
    let (_, result) = generate_with(&settings, &asked).await;
    assert_eq!(result.unwrap_err().class(), Class::Unreachable);
}

#[tokio::test]
async fn a_missing_result_ends_the_job() {
    let fake = FakeService::start(services::FAL).await;
    let backend = backend_of(&fake.settings());
    let away = Reply::json(500, &json!({"detail": "Internal Server Error"}));
    fake.next_result(away.clone());
    let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    result.unwrap();
    assert_eq!(collected.images.len(), 1);

    for _ in 0..20 {
        fake.next_result(away.clone());
    }
    let (_, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    assert_eq!(fake.asked(), 2);
}

#[tokio::test]
async fn fals_jobs_are_identified_by_their_url() {
    let fake = FakeService::start(services::FAL).await;
    let backend = backend_of(&fake.settings());
    fake.play(Scenario::GeneratesNothing);
    let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    assert_eq!(result.unwrap_err().class(), Class::NoImage);
    let job = &collected.jobs[0];
    assert_eq!(
        job,
        &format!("{}/openai/gpt-image-2/requests/job_1", fake.url)
    );
    let paths: Vec<_> = fake.calls().into_iter().map(|call| call.path).collect();
    assert!(paths.contains(&"/openai/gpt-image-2/requests/job_1/status".to_owned()));
    backend.cancel(job).await.unwrap();
    let last = fake.calls().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.ends_with("/cancel")),
        ("PUT", true)
    );
}

/// The client's parameters are values in a template; they are never expanded.
#[tokio::test]
async fn parameters_are_not_expanded_as_templates() {
    let fake = FakeService::start(services::FAL).await;
    let backend = backend_of(&fake.settings());
    let mut asked = wanted(&fake, 1);
    asked.prompt = "{model} {seed} \"}{".to_owned();
    let options = json!({"seed": "{job}", "output_format": "{prompt}"});
    asked.options = options.as_object().unwrap().clone();
    let (_, result) = generate_by(&*backend, &asked).await;
    result.unwrap();
    let body = fake.calls()[0].json();
    assert_eq!(body["prompt"], asked.prompt);
    assert_eq!(body["output_format"], "{prompt}");
    assert_eq!(body.get("seed"), None::<&Value>);
}
