//! The settings in force: the embedded defaults, under a file, under the environment, under flags.
//!
//! `config/easel.toml` is the one place that knows keys, types and defaults; what is here gives
//! them types of their own. See docs/configuration.md for the rules.

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
    /// Those that a model generates with.
    pub backends: BTreeMap<String, Backend>,
    pub models: BTreeMap<String, Model>,
    /// The same as text knows it, its secrets hidden: see [`Config::to_toml`].
    #[serde(skip)]
    in_force: toml::Table,
    /// See [`Config::backend_fingerprint`].
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
    /// Networks, or single addresses, of the operator's own proxies.
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
    /// Of one account.
    pub account_queued_max: u64,
    /// Of one account, in this process.
    pub account_sync_waiters_max: usize,
    sync_wait_max_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
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

/// Whether answers carry the images themselves beside their links.
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
    /// A name of the tz database, as the database knows it.
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

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

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

#[derive(Clone, Debug, Deserialize)]
pub struct DemoBackend {
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(default)]
    pub failure_percent: u8,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OpenaiBackend {
    #[serde(default)]
    pub profile: OpenaiProfile,
    /// Such as `https://api.openai.com/v1`.
    pub base_url: Url,
    pub api_key: SecretString,
    /// Parameters of the client's that are sent on, beside those every upstream takes.
    #[serde(default)]
    pub forward: Vec<String>,
    /// Hosts, beside the one of `base_url`, from which images answered as URLs are fetched.
    #[serde(default)]
    pub download_hosts: Vec<String>,
    /// Of the square that the model was trained on; 0: images are asked for as they are wanted.
    #[serde(default)]
    pub native_side_px: u32,
}

/// Whose Images API it is.
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

#[derive(Clone, Debug, Deserialize)]
pub struct SdapiBackend {
    /// Such as `http://127.0.0.1:7860`.
    pub base_url: Url,
    /// `user:password`, or empty.
    pub api_key: SecretString,
    /// Of the square that the model was trained on; 0: images are asked for as they are wanted.
    pub native_side_px: u32,
    pub side_step_px: u32,
    pub upscale: Upscale,
    pub batch_max: u8,
}

/// How images get larger than their model generates them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upscale {
    Off,
    Hires,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ComfyuiBackend {
    pub base_url: Url,
    /// Empty where nothing in front of ComfyUI asks for one.
    pub api_key: SecretString,
    /// Files, or those that are built in; empty: such requests are not taken.
    pub text_workflow: String,
    pub image_workflow: String,
    pub mask_workflow: String,
    /// Where a request's values go, like `prompt=6.text`.
    pub text_bindings: Vec<String>,
    pub image_bindings: Vec<String>,
    pub mask_bindings: Vec<String>,
    /// Of the square that the model generates well at 1k and at 2k; 0: images are generated as they are wanted.
    pub native_side_px: u32,
    pub native_side_2k_px: u32,
    pub side_step_px: u32,
    pub batch_max: u8,
    poll_interval_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GeminiBackend {
    /// Such as `https://generativelanguage.googleapis.com/v1beta`.
    pub base_url: Url,
    pub api_key: SecretString,
    /// Of `1K` and `2K`, those that the models know by these words.
    pub image_sizes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AsyncJobBackend {
    /// The name of a description that is built in; empty where `protocol_file` is set.
    pub profile: String,
    /// A description of the operator's own.
    #[serde(deserialize_with = "empty_as_none")]
    pub protocol_file: Option<PathBuf>,
    /// `None`: where the description says.
    #[serde(deserialize_with = "empty_as_none")]
    pub base_url: Option<Url>,
    pub api_key: SecretString,
    /// Hosts, beside those of the description, from which images are fetched.
    pub download_hosts: Vec<String>,
    pub(super) poll_interval_ms: u64,
    /// Of the square that the model was trained on; 0: images are asked for as they are wanted.
    pub native_side_px: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub routes: Vec<Route>,
    /// Other names that clients may ask for it by.
    pub aliases: Vec<String>,
    pub owned_by: String,
    pub n_max: u8,
    pub price_low: Cny,
    pub price_medium: Cny,
    pub price_high: Cny,
}

/// A port alone, or one of `localhost`, is on this machine's own address: nothing is open to others that
/// does not say so.
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
        network.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no network")))
    };
    texts.into_iter().map(network).collect()
}
