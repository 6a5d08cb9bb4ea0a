//! The command line. Each command has its own file; this one lists the commands and finds the settings.

mod accounts;
mod archive;
mod config;
mod database;
mod doctor;
mod first_run;
mod healthcheck;
mod keys;
mod migrate;
mod open_files;
mod output;
mod reload;
mod serve;
mod table;
mod traces;
mod usage;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::{
    config::{Config, Log, Sources},
    failure::with_causes,
    telemetry,
};
use traces::Traces;

/// A self-hosted gateway for image generation: OpenAI-compatible, prepaid, durable.
#[derive(Debug, Parser)]
#[command(name = "easel", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Default: serve.
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "Examples:
  easel                                          start on 127.0.0.1:8080, everything in ./data
  easel --config easel.toml serve --listen 0.0.0.0:8080
  easel accounts create studio --balance 50      an account with 50 CNY
  easel keys create --account studio             prints a key for it, once
  easel usage --account studio --since 2026-11-01 --format csv

Settings: see `easel config print`; the environment (EASEL_SERVER__LISTEN, DATABASE_URL, …) overrides the file,
which EASEL_CONFIG names, too.";

#[derive(Debug, clap::Args)]
struct Global {
    /// TOML file that overrides the defaults [env: `EASEL_CONFIG`]; commands use the file of the gateway
    /// on their data directory
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the private PostgreSQL and local storage [default: data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Log filter, such as `info` or `easel=debug,warn`
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

/// Threads for file operations and name resolution. tokio's default of 512 would all start when a thousand images
/// arrive at once, which costs memory and is no faster.
const BLOCKING_THREADS_MAX: usize = 64;

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the gateway (the default)
    Serve(serve::Args),
    /// Manage accounts, which pay for tasks
    #[command(subcommand)]
    Accounts(accounts::Command),
    /// Manage the API keys of accounts
    #[command(subcommand)]
    Keys(keys::Command),
    /// Show an account's usage
    Usage(usage::Args),
    /// Export old tasks and entries, and drop them from the database
    Archive(archive::Args),
    /// Migrate the database schema (serve does this automatically)
    Migrate,
    /// Check, print or reload the settings
    #[command(subcommand)]
    Config(config::Command),
    /// Check the database, storage, each backend and the ledger: one line each
    Doctor(doctor::Args),
    /// Ask the running gateway whether it is ready: exit code 0 if so
    Healthcheck,
}

/// Runs the command given on the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            telemetry::say(&format!("easel: {}\n", with_causes(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let command = cli
        .command
        .unwrap_or(Command::Serve(serve::Args::default()));
    let sources = sources(&cli.global, &command);
    // The only command that also handles invalid settings.
    if let Command::Config(config::Command::Check) = command {
        return config::check(&sources);
    }
    let config = Config::load(&sources)?;
    let _flush = telemetry::init(&log(&cli.global, &command, &config))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Serve(_) => serve::run(config, sources).await,
            Command::Accounts(command) => accounts::run(command, &config).await,
            Command::Keys(command) => keys::run(command, &config).await,
            Command::Usage(args) => usage::run(args, &config).await,
            Command::Archive(args) => archive::run(args, &config).await,
            Command::Migrate => migrate::run(&config).await,
            Command::Config(command) => config::run(&command, &config, &sources).await,
            Command::Doctor(args) => doctor::run(args, config).await,
            Command::Healthcheck => healthcheck::run(&config).await,
        }
    })
}

/// The log settings. Commands print their own results and log only if asked to.
fn log(global: &Global, command: &Command, config: &Config) -> Log {
    let mut log = config.log.clone();
    if global.log.is_none() && !matches!(command, Command::Serve(_)) {
        "error".clone_into(&mut log.filter);
    }
    log
}

/// Where the settings come from. Commands without a given file use that of the gateway on the data directory.
fn sources(global: &Global, command: &Command) -> Sources {
    let mut overrides = Vec::new();
    let mut set = |key: &str, value: String| overrides.push((key.to_owned(), value));
    if let Some(dir) = &global.data_dir {
        set("data_dir", dir.display().to_string());
    }
    if let Some(filter) = &global.log {
        set("log.filter", filter.clone());
    }
    if let Command::Serve(serve::Args {
        listen: Some(address),
    }) = command
    {
        set("server.listen", address.clone());
    }
    // An empty variable counts as unset, as for DATABASE_URL.
    let variable = std::env::var_os("EASEL_CONFIG").filter(|file| !file.is_empty());
    let mut sources = Sources {
        file: global.config.clone().or(variable.map(PathBuf::from)),
        environment: Sources::process_environment(),
        overrides,
    };
    if sources.file.is_none()
        && !matches!(command, Command::Serve(_))
        && let Some(data_dir) = sources.data_dir_without_file()
    {
        sources.file = Traces::find(&data_dir).and_then(|traces| traces.config);
        if sources.file.is_some() && global.data_dir.is_none() {
            // The file may name the same directory by a relative path.
            let dir = data_dir.display().to_string();
            sources.overrides.push(("data_dir".to_owned(), dir));
        }
    }
    sources
}
