//! The trial: two replicas behind proxies that break their traffic, under clients of every kind and a schedule of
//! faults. Then all is quiet, and every promise is compared with what clients were told, what the ledger says and what
//! the upstream generated.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod abuse;
mod answers;
mod balancer;
mod book;
mod client;
mod evidence;
mod faults;
mod figures;
mod kinds;
mod ledger;
mod money;
mod object_store;
mod promises;
mod purchase;
mod readiness;
mod replica;
#[path = "../report.rs"]
mod report;
mod stage;
mod upstream;

/// The proxy that the tests use.
#[path = "../../tests/it/harness/fault_proxy.rs"]
#[expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]
#[expect(unreachable_pub, reason = "it is also part of the test harness")]
#[expect(dead_code, reason = "only tests count the connections")]
mod fault_proxy;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;

use book::Book;
use promises::Trial;
use stage::Stage;

/// Breaks what Easel depends on while clients use it, and checks whether its promises hold.
#[derive(Debug, Parser)]
struct Args {
    /// How long clients and faults run
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// The seed of the schedule of faults, of the upstream, and of the clients [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients there are, without those of the abusive accounts
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Run without faults: violations then have another cause
    #[arg(long)]
    calm: bool,
    /// Try another build of the gateway
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_easel"))]
    gateway: PathBuf,
    /// Where all data is kept meanwhile; the logs of a failed trial stay there
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!(
        "seed {seed}, {} minutes, {} clients",
        args.minutes, args.clients
    );
    easel::tls::install_crypto_provider();
    let dir = tempfile::Builder::new()
        .prefix("soak-")
        .tempdir_in(&args.dir)?;
    let book = Arc::new(Book::default());
    let stage = Stage::set_up(&args.gateway, dir.path(), seed, Arc::clone(&book)).await?;
    let trial = run(&stage, book, seed, &args).await?;
    let kept = promises::report(&stage, &trial).await?;
    stage.end().await;
    if kept {
        return Ok(ExitCode::SUCCESS);
    }
    let logs = dir.keep();
    println!(
        "a promise was broken: seed {seed}, logs in {}",
        logs.display()
    );
    Ok(ExitCode::FAILURE)
}

/// Runs clients and faults until time is up, then waits until everything has ended.
async fn run(stage: &Stage, book: Arc<Book>, seed: u64, args: &Args) -> anyhow::Result<Trial> {
    let lasting = Duration::from_secs_f64(args.minutes * 60.0);
    let until = Instant::now() + lasting;
    let shared = stage.shared(Arc::clone(&book), until);
    let mut crowd = JoinSet::new();
    for number in 0..args.clients {
        let rng = StdRng::seed_from_u64(seed ^ (0xC11E_4700 + number as u64));
        crowd.spawn(kinds::run(stage.client(&shared, number, rng), number));
    }
    for number in 0..abuse::CLIENTS {
        let rng = StdRng::seed_from_u64(seed ^ (0xAB5E_0000 + number as u64));
        crowd.spawn(abuse::run(stage.abuser(&shared, number, rng), number));
    }
    let mut probing = JoinSet::new();
    for replica in 0..stage.replicas.len() {
        probing.spawn(balancer::keep_probing(stage.prober(&shared), replica));
    }
    let faults = if args.calm {
        tokio::time::sleep(lasting).await;
        Vec::new()
    } else {
        faults::run(stage, StdRng::seed_from_u64(seed), until).await?
    };
    while let Some(ended) = crowd.join_next().await {
        ended?;
    }
    ledger::wait_until_quiet(stage).await?;
    probing.shutdown().await;
    Ok(Trial {
        book,
        faults,
        ended: Instant::now(),
    })
}
