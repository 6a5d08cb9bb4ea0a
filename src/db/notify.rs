//! Notifications between processes.

use sqlx::{PgConnection, query};

/// The NOTIFY channel that asks all gateways to reload their configuration.
pub const RELOAD_CHANNEL: &str = "easel_reload";

/// Sends a notification when the transaction commits. It has at most 8000 bytes.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn notify(conn: &mut PgConnection, channel: &str, payload: &str) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, $2)", channel, payload)
        .execute(conn)
        .await
        .map(drop)
}
