//! The notification to reload the configuration.

use sqlx::{PgConnection, query};

/// The NOTIFY channel that asks all gateways to reload their configuration.
pub const RELOAD_CHANNEL: &str = "easel_reload";

/// Notifies all gateways to reload their configuration.
pub async fn notify_reload(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", RELOAD_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}
