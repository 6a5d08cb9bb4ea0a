//! `easel keys`

use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use secrecy::{ExposeSecret, SecretString};

use super::{
    accounts::unknown,
    database::{Database, Purpose},
    first_run, output, table,
};
use crate::{
    accounts::{
        keys,
        store::{self, ApiKey, KeyLimits},
    },
    config::{Config, InlineImages},
    telemetry,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a key and print it: it cannot be shown again
    #[command(
        after_help = "Example:\n  KEY=$(easel keys create --account studio --name ci --rpm 60)"
    )]
    Create(Create),
    /// List keys, without the keys themselves
    List {
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
    },
    /// Revoke a key, given its id, as `keys list` shows it, or the key itself
    Revoke { key: String },
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// The account that pays
    #[arg(long, value_name = "NAME")]
    account: String,
    /// Name in lists and usage records
    #[arg(long, default_value = "key")]
    name: String,
    /// Maximum requests per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rpm: Option<u32>,
    /// Maximum open tasks [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    concurrency: Option<u32>,
    /// When it expires: 2027-01-31, or 2027-01-31T12:00:00Z [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    expires: Option<DateTime<Utc>>,
    /// Whether responses contain `b64_json` [default: setting `images.inline_images`]
    #[arg(long, value_name = "WHEN")]
    inline_images: Option<InlineImages>,
}

/// Parses a date, which means midnight UTC, or an RFC 3339 time.
pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(date) = text.parse::<NaiveDate>() {
        return Ok(date.and_time(NaiveTime::MIN).and_utc());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .ok()
        .ok_or_else(|| "not a date like 2027-01-31 nor a time like 2027-01-31T12:00:00Z".to_owned())
}

/// Runs one of the commands. Works on the database directly, whether or not a gateway is running.
pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::open(config, Purpose::Command).await?;
    let done = match command {
        Command::Create(create) => self::create(&database, create).await,
        Command::List { account } => list(&database, account.as_deref(), config).await,
        Command::Revoke { key } => revoke(&database, &key).await,
    };
    database.close().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn create(database: &Database, create: Create) -> anyhow::Result<()> {
    let mut conn = database.pool.acquire().await?;
    let Some(account) = store::id_of(&mut conn, &create.account).await? else {
        bail!("{}", unknown(&create.account));
    };
    let limits = KeyLimits {
        requests_per_minute: create.rpm,
        concurrent_requests: create.concurrency,
        expires_at: create.expires,
        inline_images: create.inline_images,
    };
    let key = keys::generate();
    store::insert_key(&mut conn, account, &create.name, &key, &limits).await?;
    output::print_line(key.secret.expose_secret())
}

async fn list(database: &Database, account: Option<&str>, config: &Config) -> anyhow::Result<()> {
    let keys = store::list_keys(&mut *database.pool.acquire().await?, account).await?;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |key: &ApiKey| {
        vec![
            key.id.to_string(),
            key.account.clone(),
            key.name.clone(),
            key.hint.clone(),
            or_dash(key.requests_per_minute.map(|n| n.to_string())),
            or_dash(key.concurrent_requests.map(|n| n.to_string())),
            or_dash(key.inline_images.clone()),
            or_dash(
                key.expires_at
                    .map(|time| time.format("%Y-%m-%d").to_string()),
            ),
            if key.revoked_at.is_some() {
                "revoked"
            } else {
                "valid"
            }
            .to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
    let header = [
        "ID",
        "ACCOUNT",
        "NAME",
        "KEY",
        "RPM",
        "CONCURRENCY",
        "INLINE IMAGES",
        "EXPIRES",
        "STATE",
    ];
    output::print(&table::text(&header, &rows))?;
    let first_key = first_run::key_file(&config.data_dir);
    if first_key.exists() {
        let path = first_key.display();
        telemetry::say(&format!(
            "note: the first key is in {path}; keep it elsewhere and delete the file\n"
        ));
    }
    Ok(())
}

async fn revoke(database: &Database, key: &str) -> anyhow::Result<()> {
    let mut conn = database.pool.acquire().await?;
    let id = match key.parse() {
        Ok(id) => Some(id),
        Err(_) => match keys::authenticate(&SecretString::from(key)) {
            Some(hash) => store::key_id_of(&mut conn, &hash).await?,
            None => None,
        },
    };
    let revoked = match id {
        Some(id) => store::revoke_key(&mut conn, id).await?,
        None => None,
    };
    if revoked.is_none() {
        bail!("no such key: give its id, as `easel keys list` shows it, or the key itself");
    }
    output::print_line("revoked")
}
