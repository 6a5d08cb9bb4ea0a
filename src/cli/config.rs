//! `easel config`: by the time it runs, the settings have been read and checked.

use std::process::ExitCode;

use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say what is wrong with the settings, all of it at once; exit code 1 if anything is
    Check,
    /// Print the settings in force, as TOML; secrets are left out
    Print,
}

pub(super) fn run(command: &Command, config: &Config) -> ExitCode {
    match command {
        Command::Check => {
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            println!("the settings are good");
        }
        Command::Print => print!("{}", config.to_toml()),
    }
    ExitCode::SUCCESS
}
