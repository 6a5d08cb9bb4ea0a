//! A connection that receives notifications. Silence is normal there, so the listener checks periodically that the
//! connection is still alive.

use std::{mem, time::Duration};

use sqlx::{
    Acquire, AssertSqlSafe, Connection, Executor, PgConnection, PgPool,
    postgres::{PgListener, PgNotification},
    query_scalar,
};
use tokio::time::timeout;

use super::pool::{in_time, set_up};

/// How long the connection may be silent before it is checked, and how long the check may take.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const PROOF_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// First key of the advisory locks that show which processes are alive. The second key is the process.
pub const PRESENCE_LOCK: i32 = 0x6561_7365;

/// A LISTEN connection. While it is open, the database knows that this process is alive.
pub struct Listener {
    pool: PgPool,
    listener: PgListener,
}

/// Takes the advisory lock that shows that the process is alive. If a silent older connection still holds it, that one
/// is terminated: otherwise it would keep a dead process alive until PostgreSQL notices.
fn present(process: i32) -> String {
    format!(
        "SELECT pg_advisory_lock_shared({PRESENCE_LOCK}, {process});
         SELECT pg_terminate_backend(pid) FROM pg_locks
         WHERE locktype = 'advisory' AND classid = {PRESENCE_LOCK}::oid AND objid = {process}::oid
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND pid <> pg_backend_pid()"
    )
}

/// Whether a process other than this one is alive.
pub async fn is_another_alive(conn: &mut PgConnection, process: i32) -> sqlx::Result<bool> {
    query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND classid = $1::int::oid AND objid <> $2::int::oid) AS "another!""#,
        PRESENCE_LOCK,
        process,
    )
    .fetch_one(conn)
    .await
}

/// The result of listening for a while.
#[derive(Debug)]
pub enum Heard {
    /// A notification on one of the channels.
    Notification(PgNotification),
    /// The connection is alive and there was no notification.
    Nothing,
}

impl Listener {
    /// Opens a connection, listens on the channels and takes the presence lock of the process.
    pub async fn open(pool: &PgPool, channels: &[&str], process: i32) -> sqlx::Result<Self> {
        let mut listener = Self {
            pool: pool.clone(),
            listener: in_time(CONNECT_TIMEOUT, PgListener::connect_with(pool)).await?,
        };
        let begun = async {
            let channels = channels.iter().copied();
            listener.listener.listen_all(channels).await?;
            listener
                .listener
                .execute(AssertSqlSafe(present(process)))
                .await
        };
        match in_time(PROOF_TIMEOUT, begun).await {
            Ok(_) => Ok(listener),
            Err(error) => {
                listener.bury().await;
                Err(error)
            }
        }
    }

    /// Waits for the next event. After an error, [`bury`](Self::bury) the listener and open another.
    pub async fn hear(&mut self) -> sqlx::Result<Heard> {
        if let Ok(heard) = timeout(SILENCE_MAX, self.listener.try_recv()).await {
            return match heard? {
                Some(notification) => Ok(Heard::Notification(notification)),
                // sqlx reconnected by itself and lost the session's statements.
                None => Err(sqlx::Error::WorkerCrashed),
            };
        }
        let asked = self.listener.execute("SELECT");
        in_time(PROOF_TIMEOUT, asked).await?;
        Ok(Heard::Nothing)
    }

    /// Ends the listener. sqlx sends a goodbye before it returns the connection to the pool and waits for the answer
    /// forever, so a silent connection would keep its pool slot. It is therefore replaced by a live one as soon as one
    /// is available.
    pub async fn bury(mut self) {
        loop {
            let options = self.pool.connect_options();
            let fresh = async {
                let mut fresh = PgConnection::connect_with(&options).await?;
                set_up(&mut fresh).await?;
                Ok(fresh)
            };
            match in_time(CONNECT_TIMEOUT, fresh).await {
                Ok(fresh) => {
                    let conn = in_time(CONNECT_TIMEOUT, Acquire::acquire(&mut self.listener));
                    if let Ok(conn) = conn.await {
                        drop(mem::replace(conn, fresh).close_hard().await);
                    }
                    return;
                }
                Err(_) => tokio::time::sleep(SILENCE_MAX).await,
            }
        }
    }
}
