//! The load harness: starts a fake upstream and a gateway, puts load on it, and prints what it measured beside the
//! required minimum.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it prints a table, and how far it is"
)]

mod gateway;
mod load;
mod peers;
mod report;
mod rounds;
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
    /// Measure nginx beside it, which must be installed: the gateway and nginx have a processor of their own, and the
    /// database any. Rates are compared
    #[arg(long)]
    peers: bool,
    /// Measure everything this often, and print the medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    let bench = Bench::set_up(args.gateway, &dir, effort, args.peers).await?;
    let is_measured = |row: &Row| match row {
        Row::Writers => args.only.contains(row),
        Row::Nginx if !args.peers => false,
        _ => args.only.is_empty() || args.only.contains(row),
    };
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        let mut figures = Vec::new();
        for row in Row::value_variants().iter().copied().filter(is_measured) {
            eprintln!("round {round} of {}: {row:?}", args.rounds);
            figures.extend(bench.measure(row).await?);
        }
        rounds.push(figures);
    }
    let mut figures = rounds::medians(rounds);
    rounds::compare(&mut figures);
    report::print_head();
    for figure in &figures {
        figure.print();
    }
    if let Some(file) = args.json {
        fs::write(file, rounds::json(&figures))?;
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
