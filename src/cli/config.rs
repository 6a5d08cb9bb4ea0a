//! `easel config`: by the time it runs, the settings have been read and checked.

use std::process::ExitCode;

use super::database::{Database, Purpose};
use crate::{backend::Registry, config::Config, tasks::store};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say what is wrong with the settings, all of it at once; exit code 1 if anything is
    Check,
    /// Print the settings in force, as TOML; secrets are left out
    Print,
    /// Have every gateway on this database read its models, backends and routing again, as SIGHUP does;
    /// nothing that is under way is dropped
    Reload,
}

pub(super) async fn run(command: &Command, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check => {
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            // Workflows and the like are read only here.
            Registry::open(&config.backends)?;
            println!("the settings are good");
        }
        Command::Print => print!("{}", config.to_toml()),
        Command::Reload => reload(config).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn reload(config: &Config) -> anyhow::Result<()> {
    let database = Database::open(config, Purpose::Command).await?;
    store::notify_reload(&mut *database.pool.acquire().await?).await?;
    database.close().await?;
    println!("told the gateways on this database; their logs say what came of it");
    Ok(())
}
