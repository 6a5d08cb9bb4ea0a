//! The pool: all work has a deadline, and a connection that stopped responding is not used again.

use std::{
    future::Future,
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, timeout};

use super::{
    kept::{Keeper, Kept, KeptConnection},
    trouble::{Trouble, trouble},
};
use crate::{batch::Lane, config};

/// Time limit of the last attempt, for a server that neither answers nor refuses.
const LAST_TRY: Duration = Duration::from_secs(2);
/// Attempts to connect at startup: the server may start at the same time as this process.
const OPEN_TRIES: u32 = 5;
/// Time limit of the shortest query, on a connection that may be dead.
const PROOF_TIMEOUT: Duration = Duration::from_millis(500);
/// Networks between this process and the database may drop a connection that was idle for longer.
const PROVEN_FOR: Duration = Duration::from_secs(10);

/// Session settings. Not startup parameters, which poolers refuse.
const SESSION: &str = "
    -- Locks are taken for what READ COMMITTED then reads; a server may have another default.
    SET default_transaction_isolation = 'read committed';
    -- A process that is paused or lost in the middle keeps nobody from its locks for long.
    SET idle_in_transaction_session_timeout = '2s';
    -- Each of our queries has an index. A plan that was made while a table was small must not scan it once it is large.
    SET enable_seqscan = off;
    SET jit = off;
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = '10s';
    -- Longer than such a process has.
    SET lock_timeout = '2500ms'";

/// Connections to the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    kept: Arc<Kept>,
    /// Time limit of a transaction or query, including the wait for a connection.
    timeout: Duration,
    doubt: Doubt,
}

/// Opens a pool and checks that the database answers.
pub async fn open(options: PgConnectOptions, config: &config::Database) -> sqlx::Result<Pool> {
    let doubt = Doubt::new();
    let doubted = doubt.clone();
    let connections = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(config.connect_timeout())
        // A broken connection is detected at its next use. A check before each use costs a round trip.
        .test_before_acquire(false)
        .before_acquire(move |conn, met| {
            let is_doubtful = doubted.covers(met.idle_for);
            Box::pin(async move {
                if is_doubtful {
                    in_time(PROOF_TIMEOUT, conn.ping()).await?;
                }
                Ok(true)
            })
        })
        .after_connect(|conn, _| Box::pin(in_time(LAST_TRY, set_up(conn))))
        // A connection given up because it is silent must not keep its pool slot.
        .after_release(|conn, _| {
            Box::pin(async move { in_time(PROOF_TIMEOUT, conn.ping()).await.map(|()| true) })
        })
        .connect_lazy_with(options.clone());
    let pool = Pool {
        connections,
        kept: Arc::default(),
        timeout: config.transaction_timeout(),
        doubt,
    };
    for _ in 0..OPEN_TRIES {
        match pool.connections.acquire().await {
            Ok(_) => return Ok(pool),
            Err(sqlx::Error::PoolTimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Err(last_refusal(&options).await)
}

/// Applies the session settings to a new connection.
pub(super) async fn set_up(conn: &mut PgConnection) -> sqlx::Result<()> {
    conn.execute(SESSION).await.map(drop)
}

/// The pool retries until its time is up and then reports only the timeout. One more attempt finds the cause.
async fn last_refusal(options: &PgConnectOptions) -> sqlx::Error {
    match timeout(LAST_TRY, PgConnection::connect_with(options)).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// Takes a connection from the pool. Boxed: sqlx's own future is 4 kB and would be part of every request that may need
/// a connection, for as long as it waits for its images.
pub fn acquire(pool: &PgPool) -> BoxFuture<'_, sqlx::Result<PoolConnection<Postgres>>> {
    Box::pin(pool.acquire())
}

/// How long a transaction waits for a lock that others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// For batches: others wait for this transaction to end.
    Little,
    /// Longer than a paused or lost process keeps its locks.
    Much,
}

impl Patience {
    /// PostgreSQL's `lock_timeout` for it.
    pub fn lock_timeout(self) -> &'static str {
        match self {
            Self::Little => "250ms",
            Self::Much => "2500ms",
        }
    }
}

impl From<Lane> for Patience {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Shared => Self::Little,
            Lane::Own => Self::Much,
        }
    }
}

impl Pool {
    /// The connection that a loop keeps; from the pool if there is none, or if it must be checked first.
    pub async fn kept(&self, keeper: Keeper) -> sqlx::Result<KeptConnection<'_>> {
        if let Some((conn, since)) = self.kept.take(keeper)
            && !self.doubt.covers(since.elapsed())
        {
            return Ok(self.kept.lend(keeper, conn));
        }
        let conn = acquire(&self.connections).await?;
        Ok(self.kept.lend(keeper, conn))
    }

    /// Closes all connections, once those in use are returned.
    pub async fn close(&self) {
        self.kept.clear();
        self.connections.close().await;
    }

    /// Time limit of a transaction or query.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When a caller must be told that its work failed: leaves time to detect a dead connection and to open a new one.
    pub fn patience(&self) -> Duration {
        self.timeout.mul_f32(1.5)
    }

    /// Runs work on a connection within the configured time. Work that takes longer is abandoned and its connection
    /// closed. Its last statement may have been executed.
    pub fn in_time<'a, T, W>(&'a self, work: W) -> BoxFuture<'a, sqlx::Result<T>>
    where
        T: Send + 'a,
        W: Future<Output = sqlx::Result<T>> + Send + 'a,
    {
        self.within(self.timeout, work)
    }

    /// Like [`in_time`](Self::in_time), with a shorter limit than configured.
    pub fn within<'a, T, W>(&'a self, limit: Duration, work: W) -> BoxFuture<'a, sqlx::Result<T>>
    where
        T: Send + 'a,
        W: Future<Output = sqlx::Result<T>> + Send + 'a,
    {
        Box::pin(async move {
            let done = in_time(limit.min(self.timeout), work).await;
            if let Err(error) = &done
                && trouble(error) == Trouble::Unreachable
            {
                self.doubt.raise();
            }
            done
        })
    }
}

impl Deref for Pool {
    type Target = PgPool;

    fn deref(&self) -> &PgPool {
        &self.connections
    }
}

/// Returns `TimedOut` if it takes longer.
pub(super) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} ms", limit.as_millis());
        Err(sqlx::Error::Io(io::Error::new(
            io::ErrorKind::TimedOut,
            message,
        )))
    })
}

/// Which connections must be checked before use: those not heard from since another connection was lost, or for a
/// while.
#[derive(Clone, Debug)]
struct Doubt {
    began: Instant,
    /// Time of the latest loss, in milliseconds since `began`.
    raised_ms: Arc<AtomicU64>,
}

impl Doubt {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            raised_ms: Arc::default(),
        }
    }

    fn raise(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis());
        let now = now.unwrap_or(u64::MAX).max(1);
        self.raised_ms.fetch_max(now, Ordering::Relaxed);
    }

    fn covers(&self, idle_for: Duration) -> bool {
        let raised = Duration::from_millis(self.raised_ms.load(Ordering::Relaxed));
        let last_heard = self.began.elapsed().saturating_sub(idle_for);
        idle_for > PROVEN_FOR || (!raised.is_zero() && last_heard <= raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_heard_of_since_a_loss_is_in_doubt() {
        let doubt = Doubt::new();
        assert!(!doubt.covers(Duration::ZERO));
        assert!(doubt.covers(Duration::from_secs(11)), "idle for long");
        doubt.raise();
        assert!(doubt.covers(Duration::from_secs(1)));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!doubt.covers(Duration::ZERO), "heard of since");
    }
}
