//! Backends that are submitted to and polled: what must be set, and the examples.

use std::fs;

use super::{Backend, Given};

#[test]
fn an_async_job_backend_has_one_description() {
    let issues = |more: &str| {
        let text = format!("[backends.a]\nkind = 'async_job'\n{more}\n[models.m]\nroutes = ['a']");
        Given::file(&text).issues()
    };
    let issue = "backends.a.profile: must be set, or protocol_file, and not both";
    assert_eq!(issues(""), [issue]);
    assert_eq!(issues("profile = 'bfl'\nprotocol_file = 'x'"), [issue]);
    assert_eq!(issues("protocol_file = 'x'"), Vec::<String>::new());
    assert_eq!(
        issues("profile = 'bfl'\nbase_url = 'ftp://h'\ndownload_hosts = ['*.a.example', 'a b']"),
        [
            "backends.a.base_url: must be an http:// or https:// URL without user, password, query and fragment",
            "backends.a.download_hosts: \"a b\" is not a host, expected one like images.example.com",
        ]
    );
}

/// What is in a comment without a space is an example, too.
#[test]
fn the_examples_in_comments_load() {
    let text = fs::read_to_string("config/async_job.toml").unwrap();
    let open = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.starts_with(' ') => example.to_owned(),
        _ => line.to_owned(),
    };
    let lines: Vec<String> = text.lines().map(open).collect();
    let config = Given::file(&lines.join("\n")).config();
    assert_eq!(config.backends.len(), 9);
    for backend in config.backends.values() {
        assert!(matches!(backend, Backend::AsyncJob(_)), "{backend:?}");
    }
}
