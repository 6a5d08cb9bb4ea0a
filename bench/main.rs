//! The load harness: starts a stand-in upstream and a gateway of its own, puts load on it and prints
//! what it measured beside what is the least that is good enough.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod gateway;
mod load;
mod report;
mod rows;
mod upstream;
mod wire;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use rows::{Bench, Effort, Row};

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

/// Puts load on a gateway of its own, on loopback, and prints the figures.
#[derive(Debug, Parser)]
struct Args {
    /// Measure for a second each, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Measure only these
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Row>,
    /// Measure another build of the gateway
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_easel"))]
    gateway: PathBuf,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let effort = if args.quick { QUICK } else { THOROUGH };
    // On the disk that builds are on: a temporary folder may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let bench = Bench::set_up(args.gateway, dir.path(), effort).await?;
    report::print_head();
    for row in Row::value_variants() {
        if args.only.is_empty() || args.only.contains(row) {
            for figure in bench.measure(*row).await? {
                figure.print();
            }
        }
    }
    Ok(())
}
