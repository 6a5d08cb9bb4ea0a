//! Reads tasks: mostly their summaries, without the request.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, query};

use super::row::{SUMMARY, readable, summary};
use crate::{
    ids::{AccountId, FileId, TaskId},
    tasks::Summary,
};

/// Lists a page of an account's tasks, newest first.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn list(
    conn: &mut PgConnection,
    account_id: AccountId,
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Summary>> {
    let sql = format!(
        "SELECT {SUMMARY} FROM tasks t WHERE t.account_id = $1 AND ($2::uuid IS NULL OR t.id < $2)
         ORDER BY t.id DESC LIMIT $3"
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(account_id)
        .bind(after)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(summary).collect()
}

/// Lists a page of an account's ended tasks, newest first, with the names of their API keys.
/// Restricted to tasks created from `since` (inclusive) to `until` (exclusive).
#[tracing::instrument(level = "debug", skip_all)]
pub async fn list_ended(
    conn: &mut PgConnection,
    account_id: AccountId,
    (since, until): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<(Summary, String)>> {
    let sql = format!(
        "SELECT {SUMMARY}, k.name AS api_key FROM task_history t JOIN api_keys k ON k.id = t.api_key_id
         WHERE t.account_id = $1
             AND ($2::uuid IS NULL OR t.id < $2)
             AND ($4::timestamptz IS NULL OR t.created_at >= $4)
             AND ($5::timestamptz IS NULL OR t.created_at < $5)
         ORDER BY t.id DESC LIMIT $3"
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(account_id)
        .bind(after)
        .bind(limit)
        .bind(since)
        .bind(until)
        .fetch_all(conn)
        .await?;
    rows.into_iter()
        .map(|row| {
            let api_key = row.try_get("api_key")?;
            Ok((summary(row)?, api_key))
        })
        .collect()
}

/// Returns the summaries of those of these tasks that exist.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn summaries(
    conn: &mut PgConnection,
    ids: &[TaskId],
) -> sqlx::Result<Vec<(TaskId, sqlx::Result<Summary>)>> {
    let sql = format!("SELECT {SUMMARY} FROM tasks t WHERE t.id = ANY($1)");
    let rows = query(AssertSqlSafe(sql)).bind(ids).fetch_all(conn).await?;
    rows.into_iter()
        .map(|row| Ok((row.try_get("id")?, summary(row))))
        .collect()
}

/// Returns those of these tasks that have ended.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn ended_among(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Summary>> {
    let sql = format!("SELECT {SUMMARY} FROM task_history t WHERE t.id = ANY($1)");
    let rows = query(AssertSqlSafe(sql)).bind(ids).fetch_all(conn).await?;
    Ok(readable(rows, summary).collect())
}

/// Returns the ended task with this file id that was created on this day, in UTC.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn by_file_id(
    conn: &mut PgConnection,
    day: NaiveDate,
    file_id: FileId,
) -> sqlx::Result<Option<Summary>> {
    // Nothing more is asked: while partitions are small, a range of ids or a status would be planned as the way to the
    // row, by another index.
    let sql = format!(
        "SELECT {SUMMARY} FROM task_history t
         WHERE date_bin('1 day', t.created_at, 'epoch') = $2 AND t.file_id = $1"
    );
    let row = query(AssertSqlSafe(sql))
        .bind(file_id)
        .bind(day.and_time(NaiveTime::MIN).and_utc());
    row.fetch_optional(conn).await?.map(summary).transpose()
}
