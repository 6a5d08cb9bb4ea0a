//! The database: how the pool is set up, and the migrations.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Postgres,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use crate::config;

/// For a server that neither answers nor refuses.
const LAST_TRY: Duration = Duration::from_secs(2);

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Opens a pool and proves that the database answers.
pub async fn open(options: PgConnectOptions, config: &config::Database) -> sqlx::Result<PgPool> {
    let options = options.options([
        // That there was no transaction to roll back is not worth a line.
        ("client_min_messages", "error"),
        // Locks are taken for what READ COMMITTED then reads; a server may have another default.
        ("default_transaction_isolation", "read committed"),
        // A process that was paused in the middle keeps nobody from its locks for long.
        ("idle_in_transaction_session_timeout", "15s"),
    ]);
    let opened = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .min_connections(1)
        .acquire_timeout(config.connect_timeout())
        // A broken connection shows at its next use; asking before each costs a round trip.
        .test_before_acquire(false)
        // A `begin()` that was cancelled half-way leaves a transaction open on the server (sqlx
        // #4385); later statements on that connection would be lost with it.
        .after_release(|conn, _| {
            Box::pin(async move { conn.execute("ROLLBACK").await.map(|_| true) })
        })
        .connect_with(options.clone())
        .await;
    match opened {
        Err(sqlx::Error::PoolTimedOut) => Err(last_refusal(&options).await),
        opened => opened,
    }
}

/// The pool, which tries until its time is up, only says that it was: one more try says what is wrong.
async fn last_refusal(options: &PgConnectOptions) -> sqlx::Error {
    match timeout(LAST_TRY, PgConnection::connect_with(options)).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// A connection of the pool's. Boxed: sqlx's own future is 4 kB, which would be part of every request
/// that may come to need a connection, all the time that it waits for its pictures.
pub fn acquire(pool: &PgPool) -> BoxFuture<'_, sqlx::Result<PoolConnection<Postgres>>> {
    Box::pin(pool.acquire())
}

/// Brings the schema up to date. Safe to run from several processes at once.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    MIGRATIONS.run(pool).await
}

/// Whether PostgreSQL knows a time zone by this name.
pub async fn check_time_zone(pool: &PgPool, name: &str) -> sqlx::Result<()> {
    sqlx::query("SELECT now() AT TIME ZONE $1")
        .bind(name)
        .execute(pool)
        .await
        .map(drop)
}
