//! `easel doctor`: reports each check in one line; exit code 1 if any fails.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use chrono::{DateTime, Utc};

use super::{
    database::{Database, Purpose, absolute},
    first_run, healthcheck, output,
    traces::Traces,
};
use crate::{
    backend::Registry,
    billing::ledger::{self, Scope, closing},
    clock::Clock,
    config::Config,
    db::{self, Advice, Effect},
    failure::with_causes,
    storage::Storage,
};

const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read the whole ledger, not only what came after the last closed month
    #[arg(long)]
    all: bool,
}

/// Runs every check, also after one has failed. Opening the database migrates it.
pub(super) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let mut report = Report {
        bad: 0,
        printed: Ok(()),
    };
    check_storage(&config, &mut report).await;
    check_backends(&config, &mut report).await;
    check_gateway(&config, &mut report).await;
    match Database::open(&config, Purpose::Command).await {
        Ok(database) => {
            let kind = if database.private.is_some() {
                "private PostgreSQL"
            } else {
                "PostgreSQL"
            };
            report.good("database", kind);
            check_settings(&database, &mut report).await;
            let scope = if args.all {
                Scope::Everything
            } else {
                Scope::Unclosed
            };
            check_ledger(&database, scope, &mut report).await;
            database.close().await?;
        }
        Err(error) => report.bad("database", &with_causes(error.as_ref())),
    }
    check_first_key(&config, &mut report);
    report.finish()
}

async fn check_storage(config: &Config, report: &mut Report) {
    if let Some(root) = missing_directory(config) {
        let text = format!(
            "{} is not there yet: `easel serve` makes it",
            root.display()
        );
        return report.note("storage", &text);
    }
    let public_url = config.server.public_url();
    let check = async {
        let storage = Storage::open(
            &config.storage,
            &config.data_dir,
            &public_url,
            Clock::default(),
        )
        .await?;
        storage.check().await?;
        Ok::<_, crate::storage::StorageError>(storage.describe())
    };
    match tokio::time::timeout(CHECK_TIMEOUT, check).await {
        Ok(Ok(description)) => report.good("storage", &description),
        Ok(Err(error)) => report.bad("storage", &with_causes(&error)),
        Err(_) => report.bad("storage", "did not answer"),
    }
}

/// Opening local storage would create its directory, which only a gateway should do.
fn missing_directory(config: &Config) -> Option<PathBuf> {
    let root = match &config.storage.url {
        None => absolute(&config.data_dir).join("objects"),
        Some(url) => url.to_file_path().ok()?,
    };
    (!root.exists()).then_some(root)
}

async fn check_backends(config: &Config, report: &mut Report) {
    let backends = match Registry::open(&config.backends) {
        Ok(backends) => backends,
        Err(error) => return report.bad("backends", &with_causes(&error)),
    };
    for (name, backend) in backends.iter() {
        let subject = format!("backend {name}");
        match tokio::time::timeout(CHECK_TIMEOUT, backend.check()).await {
            Ok(Ok(())) => report.good(&subject, "can be reached"),
            Ok(Err(error)) => report.bad(&subject, &with_causes(&error)),
            Err(_) => report.bad(&subject, "did not answer"),
        }
    }
}

/// Reports the backends' state as the gateway on this data directory sees it.
async fn check_gateway(config: &Config, report: &mut Report) {
    let Some(Traces { address, .. }) = Traces::of_running(&config.data_dir) else {
        let data_dir = absolute(&config.data_dir);
        let text = format!("none runs on {}", data_dir.display());
        return report.note("gateway", &text);
    };
    let answer = match healthcheck::ask(address, "/readyz?verbose=1").await {
        Ok(answer) => answer,
        Err(error) => return report.bad("gateway", &with_causes(error.as_ref())),
    };
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let Some(Ok(Readiness { backends })) = body.map(serde_json::from_str) else {
        return report.bad("gateway", "runs, but is not ready");
    };
    for (name, state) in backends {
        let subject = format!("gateway, backend {name}");
        match state.as_str() {
            "closed" => report.good(&subject, "in use"),
            state => report.bad(&subject, &format!("circuit {state}: it keeps failing")),
        }
    }
}

fn check_first_key(config: &Config, report: &mut Report) {
    let file = first_run::key_file(&config.data_dir);
    if file.exists() {
        let text = format!(
            "is in {}; keep it elsewhere and delete the file",
            file.display()
        );
        report.note("first key", &text);
    }
}

#[derive(serde::Deserialize)]
struct Readiness {
    backends: BTreeMap<String, String>,
}

/// The settings of a server that others run.
async fn check_settings(database: &Database, report: &mut Report) {
    let advice = async { db::advice(&mut *database.pool.acquire().await?).await };
    match advice.await {
        Ok(advice) => {
            for Advice { effect, text } in advice {
                match effect {
                    Effect::Unsafe => report.bad("database", &text),
                    Effect::Slow => report.note("database", &text),
                }
            }
        }
        Err(error) => report.bad("database", &with_causes(&error)),
    }
}

async fn check_ledger(database: &Database, scope: Scope, report: &mut Report) {
    let faults = async { ledger::faults(&mut *database.pool.acquire().await?, scope).await };
    let promises = match faults.await {
        Ok(promises) => promises,
        Err(error) => return report.bad("ledger", &with_causes(&error)),
    };
    for (promise, broken) in &promises {
        match broken {
            0 => report.good("ledger", promise),
            broken => report.bad("ledger", &format!("broken {broken} times: {promise}")),
        }
    }
    if promises.iter().all(|(_, broken)| *broken == 0) {
        let until = Clock::default().now() - closing::AGE_MIN;
        if let Err(error) = close_months(database, until).await {
            report.bad("ledger", &with_causes(&error));
        }
    }
}

/// What was checked need not be read again.
async fn close_months(database: &Database, until: DateTime<Utc>) -> sqlx::Result<()> {
    let mut conn = database.pool.acquire().await?;
    for partition in closing::unclosed(&mut conn, until).await? {
        closing::close(&mut conn, &partition).await?;
    }
    Ok(())
}

struct Report {
    bad: usize,
    /// Whether all lines so far could be printed.
    printed: anyhow::Result<()>,
}

impl Report {
    fn good(&mut self, subject: &str, text: &str) {
        self.line("ok  ", subject, text);
    }

    /// A neutral line.
    fn note(&mut self, subject: &str, text: &str) {
        self.line("note", subject, text);
    }

    fn bad(&mut self, subject: &str, text: &str) {
        self.bad += 1;
        self.line("FAIL", subject, text);
    }

    fn line(&mut self, verdict: &str, subject: &str, text: &str) {
        if self.printed.is_ok() {
            self.printed = output::print_line(&format!("{verdict}  {subject}: {text}"));
        }
    }

    fn finish(self) -> anyhow::Result<ExitCode> {
        self.printed?;
        Ok(if self.bad == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
