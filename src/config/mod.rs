//! The effective settings: the embedded defaults, overridden by a file, the environment and flags.
//!
//! `config/easel.toml` is the only list of keys, types and defaults. This module gives them Rust types. See
//! docs/configuration.md for the rules.

mod access;
mod backend;
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

pub use backend::{
    AsyncJobBackend, Backend, ComfyuiBackend, DemoBackend, GeminiBackend, OpenaiBackend,
    OpenaiProfile, SdapiBackend, Upscale,
};
pub use issue::{ConfigError, ConfigIssue};
pub use load::Sources;
pub use route::Route;

/// The effective settings: one field for each section of `config/easel.toml`, whose comments say more.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of the private PostgreSQL and local storage.
    pub data_dir: PathBuf,
    /// `[server]`
    pub server: Server,
    /// `[database]`
    pub database: Database,
    /// `[storage]`
    pub storage: Storage,
    /// `[uploads]`
    pub uploads: Uploads,
    /// `[references]`
    pub references: References,
    /// `[tasks]`
    pub tasks: Tasks,
    /// `[routing]`
    pub routing: Routing,
    /// `[images]`
    pub images: Images,
    /// `[billing]`
    pub billing: Billing,
    /// `[log]`
    pub log: Log,
    /// The backends that a model uses.
    pub backends: BTreeMap<String, Backend>,
    /// The models, by name.
    pub models: BTreeMap<String, Model>,
    /// The same settings as TOML, with hidden secrets: see [`Config::to_toml`].
    #[serde(skip)]
    in_force: toml::Table,
    /// See [`Config::backend_fingerprints`].
    #[serde(skip)]
    fingerprints: BTreeMap<String, [u8; 32]>,
}

/// `[server]`: connections, request bodies and the address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The address and port to listen on.
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    /// Without a trailing slash in its path; empty means `http://<listen>`: see [`Server::public_url`].
    #[serde(deserialize_with = "empty_as_none")]
    public_url: Option<Url>,
    /// The name in every error body.
    pub provider: String,
    /// Open connections that may carry any request.
    pub connections_max: usize,
    /// Further connections, for requests that are answered at once.
    pub connections_reserved: usize,
    /// Connections per client address.
    pub connections_per_address_max: usize,
    /// Networks or single addresses of the operator's own proxies.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Invalid keys and links per minute and client address.
    pub failures_per_minute_max: u32,
    sync_waiters_max: usize,
    header_timeout_ms: u64,
    idle_timeout_ms: u64,
    body_idle_timeout_ms: u64,
    body_timeout_ms: u64,
    write_timeout_ms: u64,
    /// The size of a JSON body, or of the text parts of a form.
    pub json_bytes_max: usize,
    /// Memory for buffered bodies of all requests.
    pub buffer_bytes_max: usize,
    /// The same per account.
    pub account_buffer_bytes_max: usize,
    /// A body that arrives more slowly is ended.
    pub body_bytes_per_s_min: usize,
    drain_timeout_ms: u64,
}

/// `[database]`: how PostgreSQL is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `None`: a private server in the data directory.
    #[serde(deserialize_with = "empty_as_none")]
    pub url: Option<SecretString>,
    /// The size of the pool.
    pub connections_max: u32,
    connect_timeout_ms: u64,
    transaction_timeout_ms: u64,
}

/// `[storage]`: where images are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// `file:` or `s3:`; `None`: `objects` in the data directory.
    #[serde(deserialize_with = "empty_as_none")]
    pub url: Option<Url>,
    /// The URL of the S3 server; `None`: AWS.
    #[serde(deserialize_with = "empty_as_none")]
    pub endpoint: Option<Url>,
    /// The URL of the S3 server for clients, if it differs.
    #[serde(deserialize_with = "empty_as_none")]
    pub public_endpoint: Option<Url>,
    /// The S3 region.
    pub region: String,
    /// Whether the bucket is in the path, or else in the host name.
    pub path_style: bool,
    /// Empty, with the secret: no S3 credentials.
    pub access_key_id: String,
    /// Empty, with the id: no S3 credentials.
    pub secret_access_key: SecretString,
    link_ttl_s: u64,
    /// Whether local files are synced before their task completes.
    pub fsync: bool,
    /// New work is refused while the local disk has less free space.
    pub free_bytes_min: u64,
    /// Memory for images that are not stored yet.
    pub held_bytes_max: u64,
    /// Local disk space for images that are not stored yet.
    pub spool_bytes_max: u64,
    /// Images that wait in memory to be sent as base64.
    pub inline_bytes_max: u64,
}

/// `[uploads]`: limits on what clients send, and how long it is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    /// The size of one file.
    pub bytes_max: u64,
    /// The bytes kept per account.
    pub account_bytes_max: u64,
    ttl_s: u64,
    /// The pixels of an image.
    pub pixels_max: u64,
    /// The length of a side of an image.
    pub side_px_max: u32,
    sweep_interval_s: u64,
}

/// `[references]`: limits on reference images and on fetching them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct References {
    /// References per request.
    pub count_max: usize,
    /// Parallel fetches per task.
    pub fetches_max: usize,
    fetch_all_timeout_ms: u64,
    /// Fetched bytes per task.
    pub fetched_bytes_max: u64,
    fetch_timeout_ms: u64,
    connect_timeout_ms: u64,
    idle_timeout_ms: u64,
    /// Redirects per fetch.
    pub redirects_max: u32,
    failure_delay_step_ms: u64,
    /// Whether addresses that are not public may be fetched from.
    pub allow_private_networks: bool,
}

/// `[tasks]`: the queue and the workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tasks {
    deadline_ms: u64,
    lease_ms: u64,
    /// Attempts per task.
    pub attempts_max: u16,
    /// Tasks that this process runs at once.
    pub running_max: usize,
    /// Queued tasks.
    pub queued_max: u64,
    /// Per account.
    pub account_queued_max: u64,
    /// Per account, in this process.
    pub account_sync_waiters_max: usize,
    sync_wait_max_ms: u64,
}

/// `[routing]`: circuits and retries.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// Consecutive failures that open a circuit.
    pub failures_max: u32,
    open_ms: u64,
    retry_wait_ms: u64,
    retry_wait_max_ms: u64,
    sync_wait_ms: u64,
}

/// `[images]`: how images are returned.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// The default of keys that set none.
    pub inline_images: InlineImages,
}

/// Whether responses contain the images themselves besides their links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum InlineImages {
    /// Responses contain the images
    Always,
    /// Responses contain the images if `response_format` asks for them
    OnRequest,
    /// Responses contain links only
    Never,
}

/// `[billing]`: months and the first balance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Billing {
    /// A name of the tz database that PostgreSQL knows.
    pub time_zone: String,
    /// The first balance of the account `default`.
    pub opening_balance: Cny,
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// As in `RUST_LOG`.
    pub filter: String,
    /// The format of lines.
    pub format: LogFormat,
    /// Memory for lines that stderr has not accepted.
    pub buffer_bytes_max: usize,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs, one object per line.
    Json,
}

/// A model that clients may request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The ways to generate it, at least one.
    pub routes: Vec<Route>,
    /// Other names that clients may use for it.
    pub aliases: Vec<String>,
    /// The owner in the list of models.
    pub owned_by: String,
    /// Images per request.
    pub n_max: u8,
    /// The price of an image of low quality.
    pub price_low: Cny,
    /// The price of an image of medium quality.
    pub price_medium: Cny,
    /// The price of an image of high quality.
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
