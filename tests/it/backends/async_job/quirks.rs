//! What sets the services apart from each other, and what hostile or ailing ones do.

use std::{io::Write, sync::Arc, time::Duration};

use easel::{
    backend::{Backend, BackendError, GenerateRequest, Registry},
    failure::Class,
    image::Format,
};
use serde_json::{Value, json};

use super::{
    super::{Collected, backend_of, contract::FakeUpstream, input, request},
    server::{Counter, KEY},
    services,
};
use crate::{
    backends::contract::Scene,
    harness::{images, upstream::Reply},
};

async fn generate(
    backend: &Arc<dyn Backend>,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let result = backend.generate(request, &mut collected);
    let result = tokio::time::timeout(Duration::from_secs(20), result).await;
    (
        collected,
        result.unwrap_or_else(|_| panic!("it goes on and on")),
    )
}

fn wanted(counter: &Counter) -> GenerateRequest {
    GenerateRequest {
        model: counter.model(),
        ..request(1)
    }
}

fn posts(counter: &Counter) -> usize {
    let calls = counter.server.calls();
    calls.iter().filter(|call| call.method == "POST").count()
}

#[tokio::test]
async fn what_ails_an_upstream_for_a_while_costs_no_image() {
    for service in [services::EASEL, services::BFL, services::SDCPP] {
        let counter = Counter::open(service).await;
        let backend = backend_of(&counter.settings());
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
            counter.server.next_look(reply);
        }
        let (collected, result) = generate(&backend, &wanted(&counter)).await;
        result.unwrap();
        assert_eq!(collected.images.len(), 1);
        assert_eq!((counter.asked(), posts(&counter)), (1, 1));
    }
}

#[tokio::test]
async fn an_image_that_is_paid_for_is_fetched_again_while_none_of_it_has_come() {
    let counter = Counter::open(services::REPLICATE).await;
    let backend = backend_of(&counter.settings());
    for reply in [
        Reply::json(503, &json!({})),
        Reply::bytes("image/png", vec![7; 50]).cut_at(0),
    ] {
        counter.server.next_result(reply);
    }
    let (collected, result) = generate(&backend, &wanted(&counter)).await;
    result.unwrap();
    assert_eq!((collected.images.len(), counter.asked()), (1, 1));

    for _ in 0..20 {
        counter.server.next_result(Reply::json(503, &json!({})));
    }
    let (_, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    let calls = counter.server.calls();
    let fetched = calls
        .iter()
        .filter(|call| call.path.starts_with("/images/"));
    assert_eq!(fetched.count(), 3 + 6);
}

#[tokio::test]
async fn a_job_that_the_upstream_does_not_know_has_failed() {
    let counter = Counter::open(services::EASEL).await;
    let backend = backend_of(&counter.settings());
    for status in [404, 410] {
        let gone = Reply::json(status, &json!({"error": {"message": "No such task."}}));
        counter.server.next_look(gone);
        let (_, result) = generate(&backend, &wanted(&counter)).await;
        assert_eq!(result.unwrap_err().class(), Class::Failed);
    }
    let revoked = Reply::json(401, &json!({"error": {"message": "No such key."}}));
    counter.server.next_look(revoked);
    let (_, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::Credentials);
}

#[tokio::test]
async fn the_key_goes_to_no_other_host() {
    let (counter, other) = (
        Counter::open(services::BFL).await,
        Counter::open(services::BFL).await,
    );
    let backend = backend_of(&counter.settings());
    let elsewhere = [
        format!("{}/v1/get_result?id=job_1", other.server.url),
        "https://bfl.ai.evil.example/v1/get_result?id=1".to_owned(),
        "https://evilbfl.ai/v1/get_result?id=1".to_owned(),
        "http://api.bfl.ai/v1/get_result?id=1".to_owned(),
        format!("{}@evil.example/", counter.server.url),
        "file:///etc/passwd".to_owned(),
        "job_1".to_owned(),
    ];
    for url in &elsewhere {
        let answer = json!({"id": "job_1", "polling_url": url});
        counter.server.next_submit(Reply::json(200, &answer));
        let (collected, result) = generate(&backend, &wanted(&counter)).await;
        // It may be generating: asked once more, it would be paid twice.
        let error = result.unwrap_err();
        assert_eq!(error.class(), Class::OutcomeUnknown, "{url}: {error}");
        assert!(collected.jobs.is_empty() && !error.to_string().contains("get_result"));

        let resumed = GenerateRequest {
            job: Some(url.clone()),
            ..wanted(&counter)
        };
        let (_, result) = generate(&backend, &resumed).await;
        assert_eq!(result.unwrap_err().class(), Class::Failed, "{url}");
        backend.cancel(url).await.unwrap();
    }
    assert_eq!(counter.asked(), elsewhere.len());
    let away = Reply::json(307, &json!({})).header("location", &elsewhere[0]);
    counter.server.next_look(away.clone());
    let (_, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    counter.server.next_submit(away);
    let (_, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    assert!(other.server.calls().is_empty());
}

#[tokio::test]
async fn an_upstream_that_takes_it_on_and_names_no_job_is_not_asked_again() {
    let counter = Counter::open(services::REPLICATE).await;
    let backend = backend_of(&counter.settings());
    for answer in [
        Reply::json(201, &json!({"id": null})),
        Reply::json(201, &json!({"id": ""})),
        Reply::json(201, &json!({"id": "a b"})),
        Reply::json(201, &json!({"id": ".."})),
        Reply::json(201, &json!([])),
        Reply::bytes("text/html", b"<html>".to_vec()),
        Reply::json(201, &json!({"id": "job_1"})).cut_at(4),
    ] {
        counter.server.next_submit(answer);
        let (collected, result) = generate(&backend, &wanted(&counter)).await;
        assert_eq!(result.unwrap_err().class(), Class::OutcomeUnknown);
        assert!(collected.jobs.is_empty());
    }
    assert_eq!(counter.asked(), 7);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_took_nothing_on() {
    let counter = Counter::open(services::FAL).await;
    let settings = counter.settings();
    let wanted = wanted(&counter);
    drop(counter);
    let backend = backend_of(&settings);
    let (_, result) = generate(&backend, &wanted).await;
    assert_eq!(result.unwrap_err().class(), Class::Unreachable);
    let checked = backend.check().await;
    assert_eq!(checked.unwrap_err().class(), Class::Unreachable);
}

#[tokio::test]
async fn easel_is_asked_again_by_the_same_key_until_the_job_is_known() {
    let counter = Counter::open(services::EASEL).await;
    let backend = backend_of(&counter.settings());
    let mut asked = wanted(&counter);
    asked.references = vec![input(Format::Png, &images::png())];
    let (collected, result) = generate(&backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.usage, [json!({"cost": 0.2})]);
    let [key, known] = &collected.jobs[..] else {
        panic!("{:?}", collected.jobs);
    };
    assert_eq!(known, &format!("{key} job_1"));

    // Lost before the answer came: repeated, while the upstream is not quite there yet.
    for _ in 0..2 {
        counter.server.next_submit(Reply::json(503, &json!({})));
    }
    asked.job = Some("another-key".to_owned());
    let (collected, result) = generate(&backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.jobs.last().unwrap(), "another-key job_2");
    asked.job = Some(key.clone());
    let (collected, result) = generate(&backend, &asked).await;
    result.unwrap();
    assert_eq!(collected.jobs.last(), Some(known));
    let before = posts(&counter);

    // Lost after it: only looked for.
    asked.job = Some(known.clone());
    let (collected, result) = generate(&backend, &asked).await;
    result.unwrap();
    assert_eq!((collected.images.len(), posts(&counter)), (1, before));

    // Never another image under the same key.
    asked.job = Some(key.clone());
    asked.prompt = "a crane".to_owned();
    let (_, result) = generate(&backend, &asked).await;
    assert_eq!(result.unwrap_err().class(), Class::Invalid);
}

#[tokio::test]
async fn dashscope_says_no_with_status_200_too() {
    let counter = Counter::open(services::DASHSCOPE).await;
    let backend = backend_of(&counter.settings());
    for (code, class) in [
        ("DataInspectionFailed", Class::Refused),
        ("InvalidParameter", Class::Invalid),
        ("InvalidApiKey", Class::Credentials),
        ("Throttling.RateQuota", Class::RateLimited),
        ("InternalError", Class::Failed),
    ] {
        let body = json!({"code": code, "message": "It is so.", "request_id": "r"});
        counter.server.next_submit(Reply::json(200, &body));
        let (_, result) = generate(&backend, &wanted(&counter)).await;
        assert_eq!(result.unwrap_err().class(), class, "{code}");
    }
    let inspected = json!({"code": "DataInspectionFailed", "message": "No.", "request_id": "r"});
    counter.server.next_look(Reply::json(200, &inspected));
    let (collected, result) = generate(&backend, &wanted(&counter)).await;
    let error = result.unwrap_err();
    assert!(
        matches!(&error, BackendError::Refused { message } if message == "No."),
        "{error}"
    );
    assert_eq!(collected.jobs.len(), 1);
}

#[tokio::test]
async fn replicate_gets_links_where_data_urls_would_be_too_long() {
    let counter = Counter::open(services::REPLICATE).await;
    let backend = backend_of(&counter.settings());
    let mut asked = wanted(&counter);
    let (small, large) = (images::png(), images::png_of(200_000));
    asked.references = vec![input(Format::Png, &small), input(Format::Png, &large)];
    let extra = json!({"input": {"seed": 4}});
    asked.extra = extra.as_object().unwrap().clone();

    let (collected, result) = generate(&backend, &asked).await;

    result.unwrap();
    assert_eq!(
        collected.usage,
        [json!({"predict_time": 4.2, "image_count": 1})]
    );
    let body = counter.server.calls()[0].json();
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
async fn apimart_gets_uploads_and_an_upload_that_fails_buys_nothing() {
    let counter = Counter::open(services::APIMART).await;
    let backend = backend_of(&counter.settings());
    let mut asked = wanted(&counter);
    asked.references = vec![input(Format::Png, &images::png_of(300_000))];
    let (_, result) = generate(&backend, &asked).await;
    result.unwrap();
    let body = counter.server.calls()[1].json();
    let url = body["image_urls"][0].as_str().unwrap();
    assert!(url.starts_with(&counter.server.url), "{url}");

    let settings = counter.settings();
    drop(counter);
    let (_, result) = generate(&backend_of(&settings), &asked).await;
    assert_eq!(result.unwrap_err().class(), Class::Unreachable);
}

#[tokio::test]
async fn a_result_that_stays_away_ends_the_job() {
    let counter = Counter::open(services::FAL).await;
    let backend = backend_of(&counter.settings());
    let away = Reply::json(500, &json!({"detail": "Internal Server Error"}));
    counter.server.next_result(away.clone());
    let (collected, result) = generate(&backend, &wanted(&counter)).await;
    result.unwrap();
    assert_eq!(collected.images.len(), 1);

    for _ in 0..20 {
        counter.server.next_result(away.clone());
    }
    let (_, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::Failed);
    assert_eq!(counter.asked(), 2);
}

#[tokio::test]
async fn fals_jobs_are_known_by_their_url() {
    let counter = Counter::open(services::FAL).await;
    let backend = backend_of(&counter.settings());
    counter.play(Scene::GeneratesNothing);
    let (collected, result) = generate(&backend, &wanted(&counter)).await;
    assert_eq!(result.unwrap_err().class(), Class::NoImage);
    let job = &collected.jobs[0];
    assert_eq!(
        job,
        &format!("{}/openai/gpt-image-2/requests/job_1", counter.server.url)
    );
    let paths: Vec<_> = counter
        .server
        .calls()
        .into_iter()
        .map(|call| call.path)
        .collect();
    assert!(paths.contains(&"/openai/gpt-image-2/requests/job_1/status".to_owned()));
    backend.cancel(job).await.unwrap();
    let last = counter.server.calls().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.ends_with("/cancel")),
        ("PUT", true)
    );
}

/// An upstream that no profile is built in for.
const OWN: &str = r#"
auth = { header = "x-key" }
[submit]
path = "{model}"
job = "/id"
[submit.body]
prompt = "{prompt}"
width = "{width}"
height = "{height}"
output_format = "png"
[poll]
path = "get_result?id={job}"
state = "/status"
done = ["Ready"]
failed = ["Error"]
[result]
urls = "/result/sample"
"#;

#[tokio::test]
async fn a_description_of_ones_own_serves_as_well() {
    let counter = Counter::open(services::BFL).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(OWN.as_bytes()).unwrap();
    let path = format!("{:?}", file.path());
    let settings = counter.settings_with(&[("profile", "\"\""), ("protocol_file", &path)]);
    let backend = backend_of(&settings);
    let capabilities = backend.capabilities();
    assert_eq!(
        (
            capabilities.n_max,
            capabilities.references_max,
            capabilities.mask
        ),
        (1, 0, false)
    );
    let (collected, result) = generate(&backend, &wanted(&counter)).await;
    result.unwrap();
    assert_eq!(collected.jobs, ["job_1"]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let counter = Counter::open(services::BFL).await;
    let fault = |more: &[(&str, &str)]| {
        let settings: toml::Value = counter
            .settings_with(more)
            .parse::<toml::Table>()
            .unwrap()
            .into();
        let all = toml::Table::from_iter([("a".to_owned(), settings)]);
        Registry::open(&all.try_into().unwrap())
            .err()
            .unwrap()
            .to_string()
    };
    let own = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = format!("{:?}", file.path());
        fault(&[("profile", "\"\""), ("protocol_file", &path)])
    };
    let known = "backends.a: profile must be one of: apimart, bfl, dashscope, dashscope-wan25, \
                 easel, fal, icodeeasy, replicate, sdcpp; or protocol_file must be set, and not both";
    assert_eq!(fault(&[("profile", "\"no-such\"")]), known);
    assert_eq!(fault(&[("protocol_file", "\"x.toml\"")]), known);
    assert_eq!(
        fault(&[("api_key", "\" \"")]),
        "backends.a: api_key is missing, set it or api_key_file"
    );
    let easel = [("profile", "\"easel\""), ("base_url", "\"\"")];
    assert_eq!(
        fault(&easel),
        "backends.a: base_url must be set, the protocol has none"
    );
    for (from, to, fault) in [
        ("{width}", "{with}", "there is no placeholder {with}"),
        (
            "\"/id\"",
            "\"id\"",
            "\"id\" is no path: one is like /data/*/url",
        ),
        (
            "{job}",
            "{model}",
            "poll.path, result.path and cancel.path may hold {job} alone",
        ),
        (
            "[poll]",
            "[poll]\nintervall = 3",
            "unknown field `intervall`",
        ),
        ("[\"Ready\"]", "[]", "poll.done must name a state"),
        (
            "\"{model}\"",
            "\"{prompt}\"",
            "submit.path may hold {model} alone",
        ),
    ] {
        let told = own(&OWN.replacen(from, to, 1));
        assert!(told.contains(fault), "{told}");
        assert!(!told.contains(KEY));
    }
}

/// The client's parameters are values in a template, and nothing more.
#[tokio::test]
async fn parameters_are_no_templates() {
    let counter = Counter::open(services::FAL).await;
    let backend = backend_of(&counter.settings());
    let mut asked = wanted(&counter);
    asked.prompt = "{model} {seed} \"}{".to_owned();
    let options = json!({"seed": "{job}", "output_format": "{prompt}"});
    asked.options = options.as_object().unwrap().clone();
    let (_, result) = generate(&backend, &asked).await;
    result.unwrap();
    let body = counter.server.calls()[0].json();
    assert_eq!(body["prompt"], asked.prompt);
    assert_eq!(body["output_format"], "{prompt}");
    assert_eq!(body.get("seed"), None::<&Value>);
}
