//! Upstreams without a built-in profile: the operator's own protocol file, and what is said about a faulty one.

use std::io::Write;

use easel::backend::Registry;

use super::{
    super::{backend_of, generate_by, wanted},
    server::{FakeService, KEY},
    services,
};

/// An upstream without a built-in profile.
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
async fn a_custom_profile_works_like_a_built_in_one() {
    let fake = FakeService::start(services::BFL).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(OWN.as_bytes()).unwrap();
    let path = format!("{:?}", file.path());
    let settings = fake.settings_with(&[("profile", "\"\""), ("protocol_file", &path)]);
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
    let (collected, result) = generate_by(&*backend, &wanted(&fake, 1)).await;
    result.unwrap();
    assert_eq!(collected.jobs, ["job_1"]);
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let fake = FakeService::start(services::BFL).await;
    let fault = |more: &[(&str, &str)]| {
        let settings: toml::Value = fake
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
                 easel, fal, icodeeasy, replicate, sdcpp; or set protocol_file, but not both";
    assert_eq!(fault(&[("profile", "\"no-such\"")]), known);
    assert_eq!(fault(&[("protocol_file", "\"x.toml\"")]), known);
    assert_eq!(
        fault(&[("api_key", "\" \"")]),
        "backends.a: api_key is missing, set it or api_key_file"
    );
    let easel = [("profile", "\"easel\""), ("base_url", "\"\"")];
    assert_eq!(
        fault(&easel),
        "backends.a: base_url must be set: the protocol has no default"
    );
    for (from, to, fault) in [
        ("{width}", "{with}", "unknown placeholder {with}"),
        (
            "\"/id\"",
            "\"id\"",
            "\"id\" is not a path such as /data/*/url",
        ),
        (
            "{job}",
            "{model}",
            "poll.path, result.path and cancel.path may contain {job} only",
        ),
        (
            "[poll]",
            "[poll]\nintervall = 3",
            "unknown field `intervall`",
        ),
        ("[\"Ready\"]", "[]", "poll.done must name a state"),
        (
            "[poll]",
            "[edit]\npath = 'edit'\nrepeat_header = 'x-repeat'\njob = '/id'\n[edit.body]\nprompt = '{prompt}'\n[poll]",
            "submit and edit must both have a repeat_header, or neither",
        ),
        (
            "\"{model}\"",
            "\"{prompt}\"",
            "submit.path may contain {model} only",
        ),
    ] {
        let error = own(&OWN.replacen(from, to, 1));
        assert!(error.contains(fault), "{error}");
        assert!(!error.contains(KEY));
    }
}
