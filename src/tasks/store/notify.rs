//! Notifications of tasks between processes. They are hints: whoever needs to know polls, too.

use sqlx::PgConnection;

use crate::{db, ids::TaskId};

/// The NOTIFY channel for queued tasks.
pub const QUEUED_CHANNEL: &str = "easel_queued";
/// The NOTIFY channel for ended tasks.
pub const ENDED_CHANNEL: &str = "easel_ended";
/// The NOTIFY channel for questions about callers.
pub const ASKED_CHANNEL: &str = "easel_asked";
/// The NOTIFY channel for the replies to these questions.
pub const REPLIED_CHANNEL: &str = "easel_replied";

/// How many ids fit into the 8000 bytes of a notification.
const NOTIFIED_IDS_MAX: usize = 200;

/// Notifies waiters in other processes of ended tasks when the transaction commits. A hint.
pub async fn notify_ended(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<()> {
    for chunk in ids.chunks(NOTIFIED_IDS_MAX) {
        let payload = chunk
            .iter()
            .map(|id| id.uuid().simple().to_string())
            .collect::<Vec<_>>()
            .join(",");
        db::notify(conn, ENDED_CHANNEL, &payload).await?;
    }
    Ok(())
}
