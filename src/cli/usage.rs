//! `easel usage`: an account's usage records and their total.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};

use super::{
    accounts::unknown,
    database::{Database, Purpose},
    keys::parse_time,
    output, table,
};
use crate::{accounts, config::Config, images::usage::Record, money::Cny, tasks::store};

const PAGE: i64 = 1000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  easel usage --account studio --since 2026-11-01 --format csv > november.csv"
)]
pub(super) struct Args {
    #[arg(long, value_name = "NAME")]
    account: String,
    /// Accepted at this time or later: 2026-11-01, or 2026-11-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<DateTime<Utc>>,
    /// Accepted before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<DateTime<Utc>>,
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    /// One record per line, as in `GET /v1/usage`
    Json,
    Csv,
}

/// Prints the records in the requested format.
pub(super) async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::open(config, Purpose::Command).await?;
    let records = read(&args, &database, &config.server.public_url()).await;
    database.close().await?;
    let records = records?;
    match args.format {
        Format::Json => {
            for record in &records {
                output::print_line(&serde_json::to_string(record)?)?;
            }
        }
        Format::Csv => output::print(&table::csv(&HEADER, &rows(&records)?))?,
        Format::Table => {
            output::print(&table::text(&HEADER, &rows(&records)?))?;
            let total: Cny = records.iter().map(|record| record.cost).sum();
            output::print_line(&format!("{} tasks, {total} CNY", records.len()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(args: &Args, database: &Database, public_url: &str) -> anyhow::Result<Vec<Record>> {
    let mut conn = database.pool.acquire().await?;
    let Some(account) = accounts::store::id_of(&mut conn, &args.account).await? else {
        bail!("{}", unknown(&args.account));
    };
    let (mut records, mut after) = (Vec::new(), None);
    loop {
        let page =
            store::list_ended(&mut conn, account, (args.since, args.until), after, PAGE).await?;
        let Some((last, _)) = page.last() else {
            return Ok(records);
        };
        after = Some(last.id);
        records.extend(
            page.iter()
                .map(|(task, key)| Record::new(task, key, public_url)),
        );
    }
}

const HEADER: [&str; 9] = [
    "TASK", "ACCEPTED", "MODEL", "QUALITY", "SIZE", "STATUS", "IMAGES", "COST CNY", "KEY",
];

fn rows(records: &[Record]) -> anyhow::Result<Vec<Vec<String>>> {
    records
        .iter()
        .map(|record| {
            let created = DateTime::from_timestamp(record.created, 0)
                .with_context(|| format!("task {} has no date that a calendar knows", record.id))?;
            Ok(vec![
                record.id.to_string(),
                created.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
                record.model.clone(),
                record.quality.as_str().to_owned(),
                format!("{} {}", record.size, record.resolution.as_str()),
                record.status.to_owned(),
                record.cost_breakdown.image_count.to_string(),
                record.cost.to_string(),
                record.api_key.clone(),
            ])
        })
        .collect()
}
