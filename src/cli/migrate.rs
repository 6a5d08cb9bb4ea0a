//! `easel migrate`

use std::process::ExitCode;

use super::{
    database::{Database, Purpose},
    output,
};
use crate::config::Config;

/// Brings the schema up to date.
pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    // Opening a database migrates it.
    Database::open(config, Purpose::Command)
        .await?
        .close()
        .await?;
    output::print_line("the database schema is up to date")?;
    Ok(ExitCode::SUCCESS)
}
