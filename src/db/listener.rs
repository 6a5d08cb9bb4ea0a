//! A connection that hears notifications. Silence is nothing special there, so it is asked now and then
//! whether it still lives.

use std::{mem, time::Duration};

use sqlx::{
    Acquire, AssertSqlSafe, Connection, Executor, PgConnection, PgPool,
    postgres::{PgListener, PgNotification},
};
use tokio::time::timeout;

use super::pool::{in_time, set_up};

/// How long nothing may be heard before it is asked, and how long the answer may take.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const PROOF_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The first key of the advisory locks that say which processes are there; the second names the process.
pub const PRESENCE_LOCK: i32 = 0x6561_7365;

/// As long as it lives, the database knows that this process does.
pub struct Listener {
    pool: PgPool,
    listener: PgListener,
}

/// Takes the lock that says that the process is there. Where a connection that has gone silent still holds it too,
/// that one is ended: it would say so of a process that has died, for as long as PostgreSQL does not miss it.
fn present(process: i32) -> String {
    format!(
        "SELECT pg_advisory_lock_shared({PRESENCE_LOCK}, {process});
         SELECT pg_terminate_backend(pid) FROM pg_locks
         WHERE locktype = 'advisory' AND classid = {PRESENCE_LOCK}::oid AND objid = {process}::oid
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND pid <> pg_backend_pid()"
    )
}

/// What came of listening for a while.
#[derive(Debug)]
pub enum Heard {
    Notification(PgNotification),
    /// The connection lives, and nothing was said.
    Nothing,
}

impl Listener {
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

    /// What is said next. After an error, [`bury`](Self::bury) it and open another.
    pub async fn hear(&mut self) -> sqlx::Result<Heard> {
        if let Ok(heard) = timeout(SILENCE_MAX, self.listener.try_recv()).await {
            return match heard? {
                Some(notification) => Ok(Heard::Notification(notification)),
                // It has connected anew by itself, without what was executed.
                None => Err(sqlx::Error::WorkerCrashed),
            };
        }
        let asked = self.listener.execute("SELECT");
        in_time(PROOF_TIMEOUT, asked).await?;
        Ok(Heard::Nothing)
    }

    /// Ends it. sqlx says goodbye on the connection before it goes back to the pool, and waits for the answer
    /// for ever: one that is silent would keep its place in the pool. So it is replaced by one that lives
    /// before, as soon as there is one.
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
