//! Checks that types and ranges cannot express: how settings fit together, and the format of texts.

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{
    AsyncJobBackend, Backend, Config, ConfigIssue, GeminiBackend, OpenaiBackend, OpenaiProfile,
    Route,
    layers::listed,
    schema::{ROUTES, in_range},
};
use crate::money::Cny;

/// All issues. Backends that no model uses are not checked.
pub(super) fn issues(config: &Config) -> Vec<ConfigIssue> {
    let mut found = Found::default();
    let empty = config.data_dir.as_os_str().is_empty();
    found.unless(!empty, "data_dir", "must be the path of a directory");
    server(config, &mut found);
    database(config, &mut found);
    storage(config, &mut found);
    tasks_and_money(config, &mut found);
    models(config, &mut found);
    backends(config, &mut found);
    found.0
}

#[derive(Default)]
struct Found(Vec<ConfigIssue>);

impl Found {
    fn unless(&mut self, sound: bool, key: impl std::fmt::Display, message: impl Into<String>) {
        if !sound {
            self.0.push(ConfigIssue::new(key, message));
        }
    }
}

fn server(config: &Config, found: &mut Found) {
    let server = &config.server;
    if let Some(url) = &server.public_url {
        found.unless(is_plain_http(url), "server.public_url", PLAIN_HTTP);
    }
    found.unless(
        !server.provider.trim().is_empty(),
        "server.provider",
        "must be a name, because it is in every error body",
    );
    found.unless(
        server.json_bytes_max <= server.account_buffer_bytes_max,
        "server.json_bytes_max",
        format!(
            "must be at most server.account_buffer_bytes_max, {}, is {}",
            server.account_buffer_bytes_max, server.json_bytes_max
        ),
    );
    found.unless(
        server.account_buffer_bytes_max <= server.buffer_bytes_max,
        "server.account_buffer_bytes_max",
        format!(
            "must be at most server.buffer_bytes_max, {}, is {}",
            server.buffer_bytes_max, server.account_buffer_bytes_max
        ),
    );
}

fn database(config: &Config, found: &mut Found) {
    let Some(url) = &config.database.url else {
        return;
    };
    let url = Url::parse(url.expose_secret());
    let sound = url.is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
    found.unless(
        sound,
        "database.url",
        "must be a postgres:// URL, like postgres://user:password@host/name",
    );
}

fn storage(config: &Config, found: &mut Found) {
    let storage = &config.storage;
    let sound = storage.url.as_ref().is_none_or(|url| match url.scheme() {
        "file" => url.to_file_path().is_ok(),
        "s3" => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
            let has_prefix = url.path().chars().all(plain) && !url.path().contains("//");
            url.has_host() && has_prefix && url.port().is_none() && is_bare(url)
        }
        _ => false,
    });
    found.unless(
        sound,
        "storage.url",
        "must be file:///path, s3://bucket or s3://bucket/prefix, of letters, digits and - . _ /",
    );
    let endpoints = [
        ("storage.endpoint", &storage.endpoint),
        ("storage.public_endpoint", &storage.public_endpoint),
    ];
    for (key, endpoint) in endpoints {
        let sound = endpoint.as_ref().is_none_or(is_plain_http);
        found.unless(sound, key, PLAIN_HTTP);
    }
    found.unless(
        !storage.region.is_empty(),
        "storage.region",
        "must be a name, like us-east-1",
    );
    let has_id = !storage.access_key_id.is_empty();
    let has_secret = has_text(&storage.secret_access_key);
    found.unless(
        has_id || !has_secret,
        "storage.access_key_id",
        "is missing, though storage.secret_access_key is set",
    );
    found.unless(
        has_secret || !has_id,
        "storage.secret_access_key",
        "is missing, though storage.access_key_id is set",
    );
}

fn tasks_and_money(config: &Config, found: &mut Found) {
    let (lease, deadline) = (config.tasks.lease_ms, config.tasks.deadline_ms);
    found.unless(
        lease < deadline,
        "tasks.lease_ms",
        format!("must be less than tasks.deadline_ms, {deadline}, is {lease}"),
    );
    found.unless(
        !config.billing.time_zone.trim().is_empty(),
        "billing.time_zone",
        "must be a name of the tz database, like Asia/Shanghai or UTC",
    );
    amount(
        "billing.opening_balance",
        config.billing.opening_balance,
        found,
    );
    if let Err(error) = EnvFilter::builder().parse(&config.log.filter) {
        let message = format!("must be a filter, like info or easel=debug,warn: {error}");
        found.0.push(ConfigIssue::new("log.filter", message));
    }
}

fn models(config: &Config, found: &mut Found) {
    found.unless(
        !config.models.is_empty(),
        "models",
        "must contain at least one model",
    );
    for (name, model) in &config.models {
        let key = |leaf: &str| format!("models.{name}.{leaf}");
        found.unless(is_name(name), format!("models.{name}"), NAME);
        routes(config, &key("routes"), &model.routes, found);
        aliases(config, &key("aliases"), name, found);
        amount(key("price_low"), model.price_low, found);
        amount(key("price_medium"), model.price_medium, found);
        amount(key("price_high"), model.price_high, found);
    }
}

fn routes(config: &Config, key: &str, routes: &[Route], found: &mut Found) {
    let backends = listed(config.backends.keys());
    let message = format!("must list at least one backend, of: {backends}");
    found.unless(!routes.is_empty(), key, message);
    for (index, route) in routes.iter().enumerate() {
        let backend = &route.backend;
        found.unless(
            config.backends.contains_key(backend),
            key,
            format!("there is no backend {backend:?}, configured are: {backends}"),
        );
        let same = |other: &Route| {
            (&other.backend, &other.upstream_model) == (&route.backend, &route.upstream_model)
        };
        let message = format!("two routes lead to {backend:?} with the same upstream_model");
        found.unless(!routes[..index].iter().any(same), key, message);
        for (leaf, number) in route.numbers() {
            if let Err(message) = in_range(&format!("{ROUTES}.{leaf}"), number.into()) {
                found
                    .0
                    .push(ConfigIssue::new(key, format!("{leaf} {message}")));
            }
        }
    }
}

fn aliases(config: &Config, key: &str, name: &str, found: &mut Found) {
    for (other_name, other) in &config.models {
        for alias in &config.models[name].aliases {
            found.unless(
                is_name(alias) && !config.models.contains_key(alias),
                key,
                format!("{alias:?} must be a name, and no model's own"),
            );
            found.unless(
                name == other_name || !other.aliases.contains(alias),
                key,
                format!("{alias:?} is an alias of {other_name} too"),
            );
        }
    }
}

fn backends(config: &Config, found: &mut Found) {
    for (name, backend) in &config.backends {
        found.unless(is_name(name), format!("backends.{name}"), NAME);
        let mut routes = config.models.values().flat_map(|model| &model.routes);
        let used = routes.any(|route| route.backend == *name);
        match backend {
            Backend::Openai(openai) if used => self::openai(name, openai, found),
            Backend::Sdapi(sdapi) if used => {
                let key = format!("backends.{name}.base_url");
                found.unless(is_plain_http(&sdapi.base_url), key, PLAIN_HTTP);
            }
            Backend::AsyncJob(polled) if used => async_job(name, polled, found),
            Backend::Comfyui(comfyui) if used => {
                let key = format!("backends.{name}.base_url");
                found.unless(is_plain_http(&comfyui.base_url), key, PLAIN_HTTP);
            }
            Backend::Gemini(gemini) if used => self::gemini(name, gemini, found),
            Backend::Openai(_)
            | Backend::Sdapi(_)
            | Backend::Comfyui(_)
            | Backend::Gemini(_)
            | Backend::AsyncJob(_)
            | Backend::Demo(_) => {}
        }
    }
}

fn openai(name: &str, backend: &OpenaiBackend, found: &mut Found) {
    let key = |leaf: &str| format!("backends.{name}.{leaf}");
    let mut base_url = backend.base_url.clone();
    if backend.profile == OpenaiProfile::Azure && has_version_alone(&base_url) {
        base_url.set_query(None);
    }
    found.unless(is_plain_http(&base_url), key("base_url"), PLAIN_HTTP);
    let wants_key = matches!(
        backend.profile,
        OpenaiProfile::Openai | OpenaiProfile::Azure
    );
    found.unless(
        has_text(&backend.api_key) || !wants_key,
        key("api_key"),
        lacks_key(name),
    );
    hosts(&key("download_hosts"), &backend.download_hosts, found);
}

fn async_job(name: &str, backend: &AsyncJobBackend, found: &mut Found) {
    let key = |leaf: &str| format!("backends.{name}.{leaf}");
    let sound = backend.base_url.as_ref().is_none_or(is_plain_http);
    found.unless(sound, key("base_url"), PLAIN_HTTP);
    found.unless(
        backend.profile.is_empty() == backend.protocol_file.is_some(),
        key("profile"),
        "must be set, or protocol_file, and not both",
    );
    hosts(&key("download_hosts"), &backend.download_hosts, found);
}

fn hosts(key: &str, hosts: &[String], found: &mut Found) {
    for host in hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let with_port = name.rsplit_once(':');
        let with_port = with_port.filter(|(_, port)| port.parse::<u16>().is_ok());
        let sound = url::Host::parse(with_port.map_or(name, |(name, _)| name)).is_ok();
        let message = format!("{host:?} is not a host, expected one like images.example.com");
        found.unless(sound, key, message);
    }
}

fn gemini(name: &str, backend: &GeminiBackend, found: &mut Found) {
    let key = |leaf: &str| format!("backends.{name}.{leaf}");
    found.unless(
        is_plain_http(&backend.base_url),
        key("base_url"),
        PLAIN_HTTP,
    );
    found.unless(has_text(&backend.api_key), key("api_key"), lacks_key(name));
    for size in &backend.image_sizes {
        found.unless(
            matches!(size.as_str(), "1K" | "2K"),
            key("image_sizes"),
            format!("{size:?} is not a size, expected 1K or 2K"),
        );
    }
}

fn lacks_key(backend: &str) -> String {
    let key = super::key::Key::new(["backends", backend, "api_key"]);
    format!("is missing: set it, api_key_file, or {}", key.variable())
}

/// As in Azure URLs: `?api-version=2025-04-01-preview`.
fn has_version_alone(url: &Url) -> bool {
    let mut pairs = url.query_pairs();
    let version = pairs.next().is_some_and(|(name, _)| name == "api-version");
    version && pairs.next().is_none()
}

const PLAIN_HTTP: &str =
    "must be an http:// or https:// URL without user, password, query and fragment";

fn is_plain_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https") && url.has_host() && is_bare(url)
}

fn is_bare(url: &Url) -> bool {
    url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

const NAME: &str =
    "a name has letters, digits, '.', '-' and '_', and begins with a letter or digit";

/// Model names are part of links and storage paths.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.len() <= 128
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn has_text(secret: &SecretString) -> bool {
    !secret.expose_secret().trim().is_empty()
}

fn amount(key: impl std::fmt::Display, amount: Cny, found: &mut Found) {
    let message = format!("must be at least 0, is {amount}");
    found.unless(amount >= Cny::ZERO, key, message);
}
