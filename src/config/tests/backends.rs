//! The settings of backends, and the examples of every kind.

use std::{fs, time::Duration};

use secrecy::ExposeSecret;

use super::Given;

#[test]
fn the_examples_load() {
    for (example, key, models) in [
        (
            "openai",
            "EASEL_BACKENDS__OPENAI__API_KEY",
            &["gpt-image-1.5", "gpt-image-2"][..],
        ),
        ("azure", "EASEL_BACKENDS__AZURE__API_KEY", &["gpt-image-2"]),
        ("sd-server", "", &["stable-diffusion"]),
        ("localai", "", &["stable-diffusion"]),
        ("sdapi", "EASEL_BACKENDS__WEBUI__API_KEY", &["sdxl"]),
        ("comfyui", "", &["sdxl"]),
        (
            "async_job",
            "EASEL_BACKENDS__BEHIND__API_KEY",
            &["gpt-image-2"],
        ),
        (
            "gemini",
            "EASEL_BACKENDS__GEMINI__API_KEY",
            &["gemini-3-pro-image"],
        ),
    ] {
        let text = fs::read_to_string(format!("config/{example}.toml")).unwrap();
        let mut given = Given::file(&text);
        if !key.is_empty() {
            given = given.env(key, "sk-1");
        }
        let config = given.config();
        assert_eq!(config.models.keys().collect::<Vec<_>>(), models);
        for model in config.models.values() {
            assert_eq!(model.routes[0].timeout(), Duration::from_mins(10));
        }
    }
    let config = Given::file(&fs::read_to_string("config/replicas.toml").unwrap())
        .env("EASEL_BACKENDS__OPENAI__API_KEY", "sk-1")
        .env("DATABASE_URL", "postgres://easel:pw@db/easel")
        .env("EASEL_STORAGE__ACCESS_KEY_ID", "id")
        .env("EASEL_STORAGE__SECRET_ACCESS_KEY", "secret")
        .config();
    let url = config.database.url.as_ref().unwrap();
    assert_eq!(url.expose_secret(), "postgres://easel:pw@db/easel");
    assert!(config.warnings().is_empty());
}

#[test]
fn backends_are_told_what_their_addresses_and_keys_must_be() {
    let issues = |backend: &str| {
        let text = format!("[backends.up]\n{backend}\n[models.m]\nroutes = ['up']\n");
        Given::file(&text).issues().join("; ")
    };
    let azure = "kind = 'openai'\nprofile = 'azure'\napi_key = 'k'\n";
    let version = "https://n.openai.azure.com?api-version=2025-04-01-preview";
    assert_eq!(issues(&format!("{azure}base_url = '{version}'")), "");
    for url in [&format!("{version}&a=b"), "https://h?key=1"] {
        let found = issues(&format!("{azure}base_url = '{url}'"));
        assert!(
            found.starts_with("backends.up.base_url: must be an http"),
            "{found}"
        );
    }
    let found = issues(&format!(
        "kind = 'openai'\napi_key = 'k'\nbase_url = '{version}'"
    ));
    assert!(
        found.starts_with("backends.up.base_url: must be an http"),
        "{found}"
    );

    for (profile, wants_key) in [
        ("openai", true),
        ("azure", true),
        ("generic", false),
        ("sd-server", false),
        ("localai", false),
    ] {
        let found = issues(&format!("kind = 'openai'\nprofile = '{profile}'"));
        assert_eq!(
            found.starts_with("backends.up.api_key: is missing"),
            wants_key,
            "{found}"
        );
    }
    let found = issues("kind = 'openai'\napi_key = 'k'\nprofile = 'openapi'");
    assert!(
        found.contains("unknown variant `openapi`, expected one of `openai`"),
        "{found}"
    );
    let found = issues("kind = 'sdapi'\nupscale = 'esrgan'");
    assert!(
        found.starts_with("backends.up.upscale: unknown variant"),
        "{found}"
    );
    let found = issues("kind = 'sdapi'\nbase_url = 'http://u:p@h'\nbatch_max = 9");
    assert!(
        found.contains("backends.up.batch_max: must be from 1 to 8, is 9"),
        "{found}"
    );
    let found = issues("kind = 'sdapi'\nbase_url = 'http://u:p@h'");
    assert!(
        found.starts_with("backends.up.base_url: must be an http"),
        "{found}"
    );
}
