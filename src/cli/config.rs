//! `easel config`: shows and checks the settings.

use std::process::ExitCode;

use super::{
    database::{Database, Purpose},
    output,
};
use crate::{
    backend::Registry,
    config::{Config, ConfigError, ConfigIssue, Sources},
    db, telemetry,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Report everything wrong with the settings; exit code 1 if anything is
    Check,
    /// Print the effective settings as TOML; secrets are hidden
    Print,
    /// Make every gateway on this database reload its models, backends and routing, as SIGHUP does;
    /// running tasks continue
    Reload,
}

/// Runs one of the commands.
pub(super) async fn run(
    command: &Command,
    config: &Config,
    sources: &Sources,
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check => return check(sources),
        Command::Print => output::print(&config.to_toml())?,
        Command::Reload => reload(config).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reports every fault at once: those of the settings, and those of the files that backends name.
pub(super) fn check(sources: &Sources) -> anyhow::Result<ExitCode> {
    let (config, mut faults) = Config::read(sources)?;
    for warning in config.warnings() {
        telemetry::say(&format!("warning: {warning}\n"));
    }
    // Workflows and similar files are read only here. A backend that is already faulty is reported once.
    let is_reported = |backend: &str| {
        let key = format!("backends.{backend}");
        let within = format!("{key}.");
        faults
            .iter()
            .any(|issue| issue.key == key || issue.key.starts_with(&within))
    };
    let unsound = Registry::faults(&config.backends);
    let new: Vec<ConfigIssue> = unsound
        .iter()
        .filter(|(backend, _)| !is_reported(backend))
        .map(|(_, error)| error.issue())
        .collect();
    faults.extend(new);
    if !faults.is_empty() {
        return Err(ConfigError::Faults(faults).into());
    }
    output::print_line("the settings are valid")?;
    Ok(ExitCode::SUCCESS)
}

async fn reload(config: &Config) -> anyhow::Result<()> {
    let database = Database::open(config, Purpose::Command).await?;
    db::notify(&mut *database.pool.acquire().await?, db::RELOAD_CHANNEL, "").await?;
    database.close().await?;
    output::print_line(
        "told all gateways on this database to reload; see their logs for the result",
    )
}
