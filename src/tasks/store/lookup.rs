//! Reads tasks: mostly their summaries, without the request.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as};

use super::row::{Parsed, Row, SummaryRow, readable};
use crate::{
    ids::{AccountId, FileId, TaskId},
    image::{Quality, Resolution},
    money::Cny,
    tasks::{Failure, Image, Request, Status, Summary, Task},
};

/// Lists a page of an account's tasks, newest first.
pub async fn list(
    conn: &mut PgConnection,
    account_id: AccountId,
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Summary>> {
    let rows = query_as!(
        SummaryRow,
        r#"SELECT id, account_id, status AS "status: Status", model,
               quality AS "quality: Quality", resolution AS "resolution: Resolution", ratio,
               unit_price AS "unit_price: Cny", file_id, created_at, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Parsed<Vec<Image>>",
               failure AS "failure: Parsed<Failure>"
           FROM tasks WHERE account_id = $1 AND ($2::uuid IS NULL OR id < $2)
           ORDER BY id DESC LIMIT $3"#,
        account_id,
        after,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Summary::try_from).collect()
}

/// Lists a page of an account's ended tasks, newest first, with the names of their API keys.
/// Restricted to tasks created from `since` (inclusive) to `until` (exclusive).
pub async fn list_ended(
    conn: &mut PgConnection,
    account_id: AccountId,
    (since, until): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<(Summary, String)>> {
    let rows = query!(
        r#"SELECT t.id, t.account_id, t.status AS "status: Status", t.model,
               t.quality AS "quality: Quality", t.resolution AS "resolution: Resolution", t.ratio,
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.fence,
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Parsed<Vec<Image>>",
               t.failure AS "failure: Parsed<Failure>",
               k.name AS api_key
           FROM tasks t JOIN api_keys k ON k.id = t.api_key_id
           WHERE t.account_id = $1 AND t.status IN ('completed', 'failed')
               AND ($2::uuid IS NULL OR t.id < $2)
               AND ($4::timestamptz IS NULL OR t.created_at >= $4)
               AND ($5::timestamptz IS NULL OR t.created_at < $5)
           ORDER BY t.id DESC LIMIT $3"#,
        account_id,
        after,
        limit,
        since,
        until,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let task = SummaryRow {
                id: row.id,
                account_id: row.account_id,
                status: row.status,
                model: row.model,
                quality: row.quality,
                resolution: row.resolution,
                ratio: row.ratio,
                unit_price: row.unit_price,
                file_id: row.file_id,
                created_at: row.created_at,
                fence: row.fence,
                ended_at: row.ended_at,
                cost: row.cost,
                images: row.images,
                failure: row.failure,
            };
            Ok((task.try_into()?, row.api_key))
        })
        .collect()
}

/// Returns the summaries of those of these tasks that exist.
pub async fn summaries(
    conn: &mut PgConnection,
    ids: &[TaskId],
) -> sqlx::Result<Vec<(TaskId, sqlx::Result<Summary>)>> {
    let rows = query_as!(
        SummaryRow,
        r#"SELECT id, account_id, status AS "status: Status", model,
               quality AS "quality: Quality", resolution AS "resolution: Resolution", ratio,
               unit_price AS "unit_price: Cny", file_id, created_at, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Parsed<Vec<Image>>",
               failure AS "failure: Parsed<Failure>"
           FROM tasks WHERE id = ANY($1)"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter();
    Ok(rows.map(|row| (row.id, row.try_into())).collect())
}

/// Returns those of these tasks that have ended.
pub async fn ended_among(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Summary>> {
    let rows = query_as!(
        SummaryRow,
        r#"SELECT id, account_id, status AS "status: Status", model,
               quality AS "quality: Quality", resolution AS "resolution: Resolution", ratio,
               unit_price AS "unit_price: Cny", file_id, created_at, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Parsed<Vec<Image>>",
               failure AS "failure: Parsed<Failure>"
           FROM tasks WHERE id = ANY($1) AND status IN ('completed', 'failed')"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(readable(rows))
}

/// Returns the completed task with this file id.
pub async fn by_file_id(conn: &mut PgConnection, file_id: FileId) -> sqlx::Result<Option<Summary>> {
    let row = query_as!(
        SummaryRow,
        r#"SELECT id, account_id, status AS "status: Status", model,
               quality AS "quality: Quality", resolution AS "resolution: Resolution", ratio,
               unit_price AS "unit_price: Cny", file_id, created_at, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Parsed<Vec<Image>>",
               failure AS "failure: Parsed<Failure>"
           FROM tasks WHERE file_id = $1 AND status = 'completed'"#,
        file_id,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Summary::try_from).transpose()
}

/// Returns those of these tasks that exist, with their requests.
pub async fn present(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Parsed<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, attempts, fence,
               (extract(epoch FROM deadline_at - now()) * 1000)::bigint AS "left_ms!",
               ended_at, cost AS "cost: Cny", images AS "images: Parsed<Vec<Image>>",
               failure AS "failure: Parsed<Failure>"
           FROM tasks WHERE id = ANY($1)"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Task::try_from).collect()
}
