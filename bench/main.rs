//! The load harness: starts a fake upstream and a gateway, puts load on it, and prints what it measured beside the
//! required minimum.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod gateway;
mod load;
mod report;
mod rows;
mod upstream;
mod wire;
mod writers;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};

use rows::{Bench, Effort, Row};

/// The prefix of the directories that runs leave.
const PREFIX: &str = "bench-";
const KEPT_FOR: Duration = Duration::from_hours(1);

const THOROUGH: Effort = Effort {
    warm_up: Duration::from_secs(1),
    measure: Duration::from_secs(5),
    uploads_each: 15,
};
const QUICK: Effort = Effort {
    warm_up: Duration::from_millis(300),
    measure: Duration::from_secs(1),
    uploads_each: 3,
};

/// Puts load on a new gateway, on loopback, and prints the figures.
#[derive(Debug, Parser)]
struct Args {
    /// Measure for a second each, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Measure only these; `writers` is measured only if it is named
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Row>,
    /// Measure another build of the gateway
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_easel"))]
    gateway: PathBuf,
    /// Where the gateway keeps its data: the disk that is measured
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let effort = if args.quick { QUICK } else { THOROUGH };
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(&args.dir)?
        .keep();
    let bench = Bench::set_up(args.gateway, &dir, effort).await?;
    report::print_head();
    for row in Row::value_variants() {
        let is_usual = *row != Row::Writers;
        if args.only.contains(row) || args.only.is_empty() && is_usual {
            for figure in bench.measure(*row).await? {
                figure.print();
            }
        }
    }
    remove_old(&args.dir)
}

/// A later run removes what a run leaves: for minutes after many files were removed, ext4 takes many times as long to
/// create a new one, and the next run would measure that.
fn remove_old(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_ours = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        if is_ours && entry.metadata()?.modified()?.elapsed()? > KEPT_FOR {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
