//! Notifications of queued and ended tasks. They are hints: whoever needs to know polls, too.

use sqlx::{PgConnection, query};

use crate::ids::TaskId;

/// The NOTIFY channel for queued tasks.
pub const QUEUED_CHANNEL: &str = "easel_queued";
/// The NOTIFY channel for ended tasks.
pub const ENDED_CHANNEL: &str = "easel_ended";

/// How many ids fit into the 8000 bytes of a notification.
const NOTIFIED_IDS_MAX: usize = 200;

/// Notifies workers of queued tasks when the transaction commits. A hint: workers poll anyway.
pub async fn notify_queued(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", QUEUED_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}

/// Notifies waiters in other processes of ended tasks when the transaction commits. A hint.
pub async fn notify_ended(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<()> {
    for chunk in ids.chunks(NOTIFIED_IDS_MAX) {
        let payload = chunk
            .iter()
            .map(|id| id.simple().to_string())
            .collect::<Vec<_>>()
            .join(",");
        query!("SELECT pg_notify($1, $2)", ENDED_CHANNEL, payload)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}
