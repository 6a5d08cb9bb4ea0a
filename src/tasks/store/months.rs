//! Partitions of ended tasks and entries, by month.

use sqlx::{PgConnection, query};

/// Adds the partitions of this month and of some after it, unless they exist.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn add_months(conn: &mut PgConnection, more: i32) -> sqlx::Result<()> {
    query!("SELECT FROM add_months($1)", more)
        .execute(conn)
        .await
        .map(drop)
}
