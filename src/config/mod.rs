//! The effective settings: the embedded defaults, overridden by a file, the environment and flags.
//!
//! `config/easel.toml` is the only list of keys, types and defaults. This module gives them Rust types. See
//! docs/configuration.md for the rules.

mod access;
mod issue;
mod key;
mod layers;
mod load;
mod route;
mod schema;
mod validate;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::money::Cny;

pub use issue::{ConfigError, ConfigIssue};
pub use load::Sources;
pub use route::Route;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    pub server: Server,
    pub database: Database,
    pub storage: Storage,
    pub uploads: Uploads,
    pub references: References,
    pub tasks: Tasks,
    pub routing: Routing,
    pub images: Images,
    pub billing: Billing,
    pub log: Log,
    /// The backends that a model uses.
    pub backends: BTreeMap<String, Backend>,
    pub models: BTreeMap<String, Model>,
    /// The same settings as TOML, with hidden secrets: see [`Config::to_toml`].
    #[serde(skip)]
    in_force: toml::Table,
    /// See [`Config::backend_fingerprints`].
    #[serde(skip)]
    fingerprints: BTreeMap<String, [u8; 32]>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    /// Without a trailing slash in its path; empty means `http://<listen>`: see [`Server::public_url`].
    #[serde(deserialize_with = "empty_as_none")]
    public_url: Option<Url>,
    pub provider: String,
    pub connections_max: usize,
    pub connections_reserved: usize,
    pub connections_per_address_max: usize,
    /// Networks or single addresses of the operator's own proxies.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    pub failures_per_minute_max: u32,
    sync_waiters_max: usize,
    header_timeout_ms: u64,
    idle_timeout_ms: u64,
    body_idle_timeout_ms: u64,
    body_timeout_ms: u64,
    write_timeout_ms: u64,
    pub json_bytes_max: usize,
    pub buffer_bytes_max: usize,
    pub account_buffer_bytes_max: usize,
    pub body_bytes_per_s_min: usize,
    drain_timeout_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `None`: a private server in the data directory.
    #[serde(deserialize_with = "empty_as_none")]
    pub url: Option<SecretString>,
    pub connections_max: u32,
    connect_timeout_ms: u64,
    transaction_timeout_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// `file:` or `s3:`; `None`: `objects` in the data directory.
    #[serde(deserialize_with = "empty_as_none")]
    pub url: Option<Url>,
    #[serde(deserialize_with = "empty_as_none")]
    pub endpoint: Option<Url>,
    #[serde(deserialize_with = "empty_as_none")]
    pub public_endpoint: Option<Url>,
    pub region: String,
    pub path_style: bool,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    link_ttl_s: u64,
    pub fsync: bool,
    pub free_bytes_min: u64,
    pub held_bytes_max: u64,
    pub spool_bytes_max: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    pub bytes_max: u64,
    pub account_bytes_max: u64,
    ttl_s: u64,
    pub pixels_max: u64,
    pub side_px_max: u32,
    sweep_interval_s: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct References {
    pub count_max: usize,
    pub fetches_max: usize,
    fetch_all_timeout_ms: u64,
    pub fetched_bytes_max: u64,
    fetch_timeout_ms: u64,
    connect_timeout_ms: u64,
    idle_timeout_ms: u64,
    pub redirects_max: u32,
    failure_delay_step_ms: u64,
    pub allow_private_networks: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tasks {
    deadline_ms: u64,
    lease_ms: u64,
    pub attempts_max: u16,
    pub running_max: usize,
    pub queued_max: u64,
    /// Per account.
    pub account_queued_max: u64,
    /// Per account, in this process.
    pub account_sync_waiters_max: usize,
    sync_wait_max_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    pub failures_max: u32,
    open_ms: u64,
    retry_wait_ms: u64,
    retry_wait_max_ms: u64,
    sync_wait_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    pub inline_images: InlineImages,
}

/// Whether responses contain the images themselves besides their links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum InlineImages {
    Always,
    OnRequest,
    Never,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Billing {
    /// A name of the tz database that PostgreSQL knows.
    pub time_zone: String,
    pub opening_balance: Cny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
    pub buffer_bytes_max: usize,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// The settings of one backend, by kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Backend {
    Demo(DemoBackend),
    Openai(OpenaiBackend),
    AsyncJob(AsyncJobBackend),
    Sdapi(SdapiBackend),
    Comfyui(ComfyuiBackend),
    Gemini(GeminiBackend),
}

/// Settings of the built-in demo backend.
#[derive(Clone, Debug, Deserialize)]
pub struct DemoBackend {
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(default)]
    pub failure_percent: u8,
}

/// Settings of an OpenAI-compatible backend.
#[derive(Clone, Debug, Deserialize)]
pub struct OpenaiBackend {
    #[serde(default)]
    pub profile: OpenaiProfile,
    /// Such as `https://api.openai.com/v1`.
    pub base_url: Url,
    pub api_key: SecretString,
    /// Client parameters to forward, in addition to those that every upstream accepts.
    #[serde(default)]
    pub forward: Vec<String>,
    /// Hosts, in addition to that of `base_url`, from which result URLs are downloaded.
    #[serde(default)]
    pub download_hosts: Vec<String>,
    /// Side of the model's training square; 0: images are requested in the client's size.
    #[serde(default)]
    pub native_side_px: u32,
}

/// The API dialect of an OpenAI-compatible server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenaiProfile {
    #[default]
    Openai,
    Azure,
    Generic,
    SdServer,
    Localai,
}

/// Settings of an AUTOMATIC1111-compatible backend.
#[derive(Clone, Debug, Deserialize)]
pub struct SdapiBackend {
    /// Such as `http://127.0.0.1:7860`.
    pub base_url: Url,
    /// `user:password`, or empty.
    pub api_key: SecretString,
    /// Side of the model's training square; 0: images are requested in the client's size.
    pub native_side_px: u32,
    pub side_step_px: u32,
    pub upscale: Upscale,
    pub batch_max: u8,
}

/// How to make images larger than the model generates them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upscale {
    Off,
    Hires,
}

/// Settings of a ComfyUI backend.
#[derive(Clone, Debug, Deserialize)]
pub struct ComfyuiBackend {
    pub base_url: Url,
    /// Empty if no proxy in front of ComfyUI needs one.
    pub api_key: SecretString,
    /// Files or built-in workflows; empty: such requests are not accepted.
    pub text_workflow: String,
    pub image_workflow: String,
    pub mask_workflow: String,
    /// Where a request's values go, such as `prompt=6.text`.
    pub text_bindings: Vec<String>,
    pub image_bindings: Vec<String>,
    pub mask_bindings: Vec<String>,
    /// Side of the square that the model generates well at 1k and at 2k; 0: images are generated in the client's size.
    pub native_side_px: u32,
    pub native_side_2k_px: u32,
    pub side_step_px: u32,
    pub batch_max: u8,
    poll_interval_ms: u64,
}

/// Settings of a Gemini backend.
#[derive(Clone, Debug, Deserialize)]
pub struct GeminiBackend {
    /// Such as `https://generativelanguage.googleapis.com/v1beta`.
    pub base_url: Url,
    pub api_key: SecretString,
    /// Which of `1K` and `2K` the models accept.
    pub image_sizes: Vec<String>,
}

/// Settings of a backend whose upstream runs jobs that are polled.
#[derive(Clone, Debug, Deserialize)]
pub struct AsyncJobBackend {
    /// The name of a built-in protocol description; empty if `protocol_file` is set.
    pub profile: String,
    /// The operator's own protocol description.
    #[serde(deserialize_with = "empty_as_none")]
    pub protocol_file: Option<PathBuf>,
    /// `None`: the URL from the description.
    #[serde(deserialize_with = "empty_as_none")]
    pub base_url: Option<Url>,
    pub api_key: SecretString,
    /// Hosts, in addition to those of the description, from which images are downloaded.
    pub download_hosts: Vec<String>,
    pub(super) poll_interval_ms: u64,
    /// Side of the model's training square; 0: images are requested in the client's size.
    pub native_side_px: u32,
}

/// A model that clients may request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub routes: Vec<Route>,
    /// Other names that clients may use for it.
    pub aliases: Vec<String>,
    pub owned_by: String,
    pub n_max: u8,
    pub price_low: Cny,
    pub price_medium: Cny,
    pub price_high: Cny,
}

/// A port alone, or one of `localhost`, means the loopback address: nothing is exposed to other machines unless it is
/// requested.
fn listen_address<'de, D>(deserializer: D) -> Result<SocketAddr, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let port = match text.rsplit_once(':') {
        None => Some(text.as_str()),
        Some(("" | "localhost", port)) => Some(port),
        Some(_) => None,
    };
    if let Some(port) = port.and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(serde::de::Error::custom)
}

fn empty_as_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    use serde::de::{Error, IntoDeserializer};
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    T::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(text))
        .map(Some)
        .map_err(D::Error::custom)
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: String| {
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        let network = text.parse().ok().or_else(address);
        network.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a network")))
    };
    texts.into_iter().map(network).collect()
}
