//! `easel archive`: exports old tasks and entries, then drops them.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt;
use sqlx::PgConnection;

use super::{
    database::{Database, Purpose},
    output,
};
use crate::{
    billing::ledger::{
        self, Scope,
        closing::{self, Part, Partition},
    },
    clock::Clock,
    config::Config,
    db::{self, Patience, Trouble, trouble},
    private_files,
};

/// How often a drop that meets a lock is tried, and the wait in between.
const DROP_TRIES: u32 = 20;
const DROP_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  easel archive --before 2026-01 --to /backup/easel

Writes tasks-2025_12.csv, entries-2025_12.csv and so on, with the columns of the tables `task_history` and `entries`, and
drops these months from the database. Balances stay. The tasks can no longer be polled or listed and the links of their
images end; the images themselves stay in storage, under the keys in the column `images`.")]
pub(super) struct Args {
    /// The first month that stays: 2026-01
    #[arg(long, value_name = "MONTH", value_parser = parse_month)]
    before: DateTime<Utc>,
    /// Directory of the files
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

fn parse_month(text: &str) -> Result<DateTime<Utc>, String> {
    let first = NaiveDate::parse_from_str(&format!("{text}-01"), "%Y-%m-%d");
    let midnight = first.ok().and_then(|day| day.and_hms_opt(0, 0, 0));
    let midnight = midnight.ok_or_else(|| "expected a month like 2026-01".to_owned())?;
    Ok(midnight.and_utc())
}

/// Archives month by month, so that what is done stays done if a later one fails.
pub(super) async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::open(config, Purpose::Command).await?;
    let archived = archive_all(&args, &database).await;
    database.close().await?;
    archived?;
    Ok(ExitCode::SUCCESS)
}

async fn archive_all(args: &Args, database: &Database) -> anyhow::Result<()> {
    let now = Clock::default().now();
    ensure!(
        args.before + closing::AGE_MIN <= now,
        "a month can be archived a day after its end: --before must be {} or earlier",
        (now - closing::AGE_MIN).format("%Y-%m")
    );
    let mut conn = database.pool.acquire().await?;
    let partitions = closing::partitions(&mut conn, args.before).await?;
    if partitions.is_empty() {
        output::print_line("nothing is that old")?;
        return Ok(());
    }
    for (promise, broken) in ledger::faults(&mut conn, Scope::Unclosed).await? {
        ensure!(
            broken == 0,
            "nothing was archived, because the ledger is broken {broken} times: {promise}"
        );
    }
    fs::create_dir_all(&args.to)
        .with_context(|| format!("could not create {}", args.to.display()))?;
    for partition in partitions {
        let files = Part::ALL.map(|part| (part, args.to.join(file_name(part, &partition))));
        for (_, file) in &files {
            ensure!(
                !file.exists(),
                "{} exists: move it away, or choose another directory",
                file.display()
            );
        }
        let rows = export_both(&mut conn, &partition, &files).await;
        if rows.is_err() {
            for (_, file) in &files {
                // It may not have been created.
                let _ = fs::remove_file(file);
            }
        }
        let [tasks, entries] = rows?;
        let name = &partition.name;
        // From here on the files stay: if the answer to the commit is lost, they are all that is left.
        drop_patiently(&database.pool, &partition)
            .await
            .with_context(|| format!("{name} was exported, and may not have been dropped"))?;
        output::print_line(&format!(
            "archived {name}: {tasks} tasks, {entries} entries"
        ))?;
    }
    Ok(())
}

fn file_name(part: Part, partition: &Partition) -> String {
    format!("{}-{}.csv", part.name(), partition.name)
}

/// Returns the numbers of rows.
async fn export_both(
    conn: &mut PgConnection,
    partition: &Partition,
    files: &[(Part, PathBuf); 2],
) -> anyhow::Result<[i64; 2]> {
    let mut rows = [0; 2];
    for ((part, file), rows) in files.iter().zip(&mut rows) {
        export(conn, partition, *part, file)
            .await
            .with_context(|| format!("could not write {}", file.display()))?;
        *rows = closing::count(conn, partition, *part).await?;
    }
    Ok(rows)
}

/// A lock that this waits for keeps everybody else waiting: so it waits briefly, and often.
async fn drop_patiently(pool: &db::Pool, partition: &Partition) -> anyhow::Result<()> {
    for _ in 0..DROP_TRIES {
        let dropped = async {
            let mut tx = db::begin(pool, Patience::Little).await?;
            closing::close(&mut tx, partition).await?;
            closing::drop_partition(&mut tx, partition).await?;
            tx.commit().await
        };
        match dropped.await {
            Err(error) if trouble(&error) == Trouble::Contended => {}
            done => return Ok(done?),
        }
        tokio::time::sleep(DROP_WAIT).await;
    }
    bail!(
        "something reads its tables for long, like a backup: move the files away and try again later"
    )
}

/// Returns once the file would survive a power failure: then its rows are dropped.
async fn export(
    conn: &mut PgConnection,
    partition: &Partition,
    part: Part,
    path: &Path,
) -> anyhow::Result<()> {
    let mut options = private_files::options();
    let mut file = options.write(true).create_new(true).open(path)?;
    let mut rows = closing::export(conn, partition, part).await?;
    while let Some(piece) = rows.try_next().await? {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let folder = path.parent().context("it has no directory")?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
