//! Closes months that are over. What their entries add up to is carried forward, so that a balance remains the sum of its
//! account's entries although the audit does not read them again, or they were exported and dropped.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, Executor, PgConnection, query, query_as, query_scalar};

/// A month can be closed this long after its end: by then the tasks that were accepted in it have ended.
pub const AGE_MIN: TimeDelta = TimeDelta::days(1);

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

/// The partitions that end at this moment or before and are not dropped, oldest first.
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

/// Those of them that are not closed yet, oldest first.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn unclosed(
    conn: &mut PgConnection,
    until: DateTime<Utc>,
) -> sqlx::Result<Vec<Partition>> {
    query_as!(
        Partition,
        r#"SELECT p.name AS "name!", p.until AS "until!" FROM partitions_until($1) p
           WHERE NOT EXISTS (SELECT FROM closed_partitions c WHERE c.name = p.name) ORDER BY p.until"#,
        until
    )
    .fetch_all(conn)
    .await
}

/// Carries the sums of a partition forward. Partitions are closed in their order, and only if the audit found nothing
/// wrong. A partition that is closed already stays as it is.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn close(conn: &mut PgConnection, partition: &Partition) -> sqlx::Result<()> {
    let entries = Part::Entries.table(partition);
    let close = format!(
        "WITH closed AS (
             INSERT INTO closed_partitions (name, until) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING name
         )
         INSERT INTO closed_sums (name, account_id, balance, spent)
         SELECT closed.name, account_id, sum(balance_change),
             COALESCE(-sum(balance_change) FILTER (WHERE kind = 'capture'), 0)
         FROM closed, {entries} GROUP BY closed.name, account_id"
    );
    sqlx::query(AssertSqlSafe(close))
        .bind(&partition.name)
        .bind(partition.until)
        .execute(conn)
        .await
        .map(drop)
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

/// Drops a closed partition. Part of a transaction.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn drop_partition(conn: &mut PgConnection, partition: &Partition) -> sqlx::Result<()> {
    query!(
        "UPDATE closed_partitions SET archived = true WHERE name = $1",
        partition.name
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
