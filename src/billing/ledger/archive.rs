//! Archives months that are over: their tasks and entries are exported and dropped, and what the entries add up to is
//! carried forward, so that a balance remains the sum of its account's entries.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, Executor, PgConnection, query, query_as, query_scalar};

/// A partition of the ended tasks and one of the entries, of the same time.
#[derive(Clone, Debug)]
pub struct Partition {
    /// What follows the names of the tables: `2026_01`.
    pub name: String,
    /// The moment at which it ends.
    pub until: DateTime<Utc>,
}

/// What is exported of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The tasks that were accepted in its time, as rows of `task_history`.
    Tasks,
    /// The entries that were made in its time.
    Entries,
}

impl Part {
    /// Both parts.
    pub const ALL: [Self; 2] = [Self::Tasks, Self::Entries];

    /// For names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Entries => "entries",
        }
    }

    fn table(self, partition: &Partition) -> String {
        let table = match self {
            Self::Tasks => "task_history",
            Self::Entries => "entries",
        };
        format!("\"{table}_{}\"", partition.name)
    }
}

/// The partitions that end at this moment or before, oldest first.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn partitions(
    conn: &mut PgConnection,
    until: DateTime<Utc>,
) -> sqlx::Result<Vec<Partition>> {
    query_as!(
        Partition,
        r#"SELECT name AS "name!", until AS "until!" FROM partitions_until($1)"#,
        until
    )
    .fetch_all(conn)
    .await
}

/// The rows of one part as CSV with a header, in the order of their ids.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn export<'c>(
    conn: &'c mut PgConnection,
    partition: &Partition,
    part: Part,
) -> sqlx::Result<BoxStream<'c, sqlx::Result<Bytes>>> {
    let table = part.table(partition);
    let copy = format!("COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT (FORMAT csv, HEADER)");
    conn.copy_out_raw(&copy).await
}

/// Carries the sums of a partition forward and drops it. Part of a transaction.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn drop_partition(conn: &mut PgConnection, partition: &Partition) -> sqlx::Result<()> {
    let entries = Part::Entries.table(partition);
    conn.execute(AssertSqlSafe(format!(
        "INSERT INTO archived_sums AS sums (account_id, balance, spent)
         SELECT account_id, sum(balance_change), COALESCE(-sum(balance_change) FILTER (WHERE kind = 'capture'), 0)
         FROM {entries} GROUP BY account_id
         ON CONFLICT (account_id) DO UPDATE
         SET balance = sums.balance + EXCLUDED.balance, spent = sums.spent + EXCLUDED.spent"
    )))
    .await?;
    query!(
        "INSERT INTO archived_until (until) VALUES ($1)
         ON CONFLICT (one) DO UPDATE SET until = GREATEST(archived_until.until, EXCLUDED.until)",
        partition.until
    )
    .execute(&mut *conn)
    .await?;
    for part in Part::ALL {
        let table = part.table(partition);
        conn.execute(AssertSqlSafe(format!("DROP TABLE {table}")))
            .await?;
    }
    Ok(())
}

/// How many rows a part has.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn count(
    conn: &mut PgConnection,
    partition: &Partition,
    part: Part,
) -> sqlx::Result<i64> {
    let table = part.table(partition);
    query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(conn)
        .await
}
