//! Reads tasks: mostly their summaries, without the request.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, query, query_as};

use super::row::{Parsed, Row, SUMMARY, readable, summary};
use crate::{
    ids::{AccountId, FileId, TaskId},
    money::Cny,
    tasks::{Request, Status, Summary, Task},
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
        "SELECT {SUMMARY}, k.name AS api_key FROM tasks t JOIN api_keys k ON k.id = t.api_key_id
         WHERE t.account_id = $1 AND t.status IN ('completed', 'failed')
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
    let sql = format!(
        "SELECT {SUMMARY} FROM tasks t WHERE t.id = ANY($1) AND t.status IN ('completed', 'failed')"
    );
    let rows = query(AssertSqlSafe(sql)).bind(ids).fetch_all(conn).await?;
    Ok(readable(rows, summary).collect())
}

/// Returns the completed task with this file id.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn by_file_id(conn: &mut PgConnection, file_id: FileId) -> sqlx::Result<Option<Summary>> {
    let sql =
        format!("SELECT {SUMMARY} FROM tasks t WHERE t.file_id = $1 AND t.status = 'completed'");
    let row = query(AssertSqlSafe(sql)).bind(file_id);
    row.fetch_optional(conn).await?.map(summary).transpose()
}

/// Returns those of these tasks that exist, with their requests.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn present(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Parsed<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, attempts, fence,
               (extract(epoch FROM deadline_at - now()) * 1000)::bigint AS "left_ms!"
           FROM tasks WHERE id = ANY($1)"#,
        ids as _,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Task::try_from).collect()
}
