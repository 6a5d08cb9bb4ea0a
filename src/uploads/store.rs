//! Uploads in the database.

use std::error::Error;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar};

use super::Upload;
use crate::{
    ids::{AccountId, UploadId},
    storage::{InvalidKey, Key},
};

/// Inserts an upload.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn insert(conn: &mut PgConnection, upload: &Upload) -> sqlx::Result<()> {
    query!(
        "INSERT INTO uploads (id, account_id, name, object, format, bytes, file_name, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        upload.id as _,
        upload.account_id as _,
        upload.name,
        upload.object as _,
        upload.format as _,
        upload.bytes,
        upload.file_name,
        upload.created_at,
        upload.expires_at,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Returns the upload with this URL name, expired or not.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn get(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<Upload>> {
    if name.contains('\0') {
        return Ok(None); // PostgreSQL has no such text and would report an error
    }
    query_as!(
        Upload,
        r#"SELECT id, account_id, name, object AS "object: Key", format AS "format: _", bytes, file_name,
               created_at, expires_at
           FROM uploads WHERE name = $1"#,
        name,
    )
    .fetch_optional(conn)
    .await
}

/// Lists uploads that expired before a time and still have bytes, the longest expired first. Two
/// replicas may get the same ones: deleting twice is harmless. An upload whose key cannot be read is left out, and
/// keeps its bytes.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn expired(
    conn: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> sqlx::Result<Vec<(UploadId, Key)>> {
    let rows = query!(
        r#"SELECT id AS "id: UploadId", object FROM uploads WHERE deleted_at IS NULL AND expires_at <= $1
           ORDER BY expires_at LIMIT $2"#,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let readable = rows.into_iter().filter_map(|row| match row.object.parse() {
        Ok(key) => Some((row.id, key)),
        Err(error) => {
            let error: InvalidKey = error;
            tracing::error!(upload.id = %row.id, error = &error as &dyn Error, "uploads.object cannot be read: not deleted");
            None
        }
    });
    Ok(readable.collect())
}

/// The total bytes of an account's uploads that are not deleted.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn stored_bytes(conn: &mut PgConnection, account_id: AccountId) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT COALESCE(sum(bytes), 0)::bigint AS "bytes!"
           FROM uploads WHERE account_id = $1 AND deleted_at IS NULL"#,
        account_id as _,
    )
    .fetch_one(conn)
    .await
}

/// Deletes the rows of uploads that were not kept.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn delete(conn: &mut PgConnection, ids: &[UploadId]) -> sqlx::Result<u64> {
    let done = query!("DELETE FROM uploads WHERE id = ANY($1)", ids as _)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Records that the bytes of uploads are deleted. Returns how many were not marked before.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn mark_deleted(conn: &mut PgConnection, ids: &[UploadId]) -> sqlx::Result<u64> {
    let done = query!(
        "UPDATE uploads SET deleted_at = now() WHERE id = ANY($1) AND deleted_at IS NULL",
        ids as _
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
