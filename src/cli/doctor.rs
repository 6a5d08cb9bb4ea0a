//! `easel doctor`: what works and what does not, one line each; exit code 1 if anything does not.

use std::{collections::BTreeMap, error::Error, process::ExitCode, time::Duration};

use super::{
    database::{Database, Purpose},
    healthcheck,
};
use crate::{backend::Registry, billing::ledger, clock::Clock, config::Config, storage::Storage};

const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
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
            check_ledger(&database, &mut report).await;
            database.close().await?;
        }
        Err(error) => report.bad("database", &format!("{error:#}")),
    }
    Ok(report.exit_code())
}

async fn check_storage(config: &Config, report: &mut Report) {
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

/// What the running gateway says of its backends; where none runs, there is nothing to say.
async fn check_gateway(config: &Config, report: &mut Report) {
    let Ok(answer) = healthcheck::ask(config, "/readyz?verbose=1").await else {
        return;
    };
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let Ok(Readiness { backends }) = serde_json::from_str(body) else {
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

#[derive(serde::Deserialize)]
struct Readiness {
    backends: BTreeMap<String, String>,
}

async fn check_ledger(database: &Database, report: &mut Report) {
    let faults = async { ledger::faults(&mut *database.pool.acquire().await?).await };
    match faults.await {
        Ok(promises) => {
            for (promise, broken) in promises {
                match broken {
                    0 => report.good("ledger", promise),
                    broken => report.bad("ledger", &format!("broken {broken} times: {promise}")),
                }
            }
        }
        Err(error) => report.bad("ledger", &with_causes(&error)),
    }
}

#[derive(Default)]
struct Report {
    bad: usize,
}

impl Report {
    #[expect(clippy::unused_self, reason = "the counterpart of `bad`")]
    fn good(&self, subject: &str, text: &str) {
        println!("ok    {subject}: {text}");
    }

    fn bad(&mut self, subject: &str, text: &str) {
        self.bad += 1;
        println!("FAIL  {subject}: {text}");
    }

    fn exit_code(&self) -> ExitCode {
        if self.bad == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
