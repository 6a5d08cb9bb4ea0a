//! Backends that are submitted to and polled: what must be set, and the examples.

use std::fs;

use super::{Backend, Given};

#[test]
fn a_polled_backend_has_one_description() {
    let faults = |more: &str| {
        let text = format!("[backends.a]\nkind = 'polled'\n{more}\n[models.m]\nroutes = ['a']");
        Given::file(&text).faults()
    };
    let fault = "backends.a.profile: must be set, or protocol_file, and not both";
    assert_eq!(faults(""), [fault]);
    assert_eq!(faults("profile = 'bfl'\nprotocol_file = 'x'"), [fault]);
    assert_eq!(faults("protocol_file = 'x'"), Vec::<String>::new());
    assert_eq!(
        faults("profile = 'bfl'\nbase_url = 'ftp://h'\ndownload_hosts = ['*.a.example', 'a b']"),
        [
            "backends.a.base_url: must be an http:// or https:// URL without user, password, query and fragment",
            "backends.a.download_hosts: \"a b\" is no host, one is like images.example.com",
        ]
    );
}

/// What is in a comment without a space is an example, too.
#[test]
fn the_examples_in_comments_load() {
    let text = fs::read_to_string("config/polled.toml").unwrap();
    let open = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.starts_with(' ') => example.to_owned(),
        _ => line.to_owned(),
    };
    let lines: Vec<String> = text.lines().map(open).collect();
    let config = Given::file(&lines.join("\n")).config();
    assert_eq!(config.backends.len(), 9);
    for backend in config.backends.values() {
        assert!(matches!(backend, Backend::Polled(_)), "{backend:?}");
    }
}
