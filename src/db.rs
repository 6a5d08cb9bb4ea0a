//! The database: how the pool is set up, and the migrations.

use futures_util::future::BoxFuture;
use sqlx::{
    Executor, PgPool, Postgres,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::config;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Opens a pool and proves that the database answers.
pub async fn open(options: PgConnectOptions, config: &config::Database) -> sqlx::Result<PgPool> {
    PgPoolOptions::new()
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
        // That there was no transaction to roll back is not worth a line.
        .connect_with(options.options([
            ("client_min_messages", "error"),
            // Locks are taken for what READ COMMITTED then reads; a server may have another default.
            ("default_transaction_isolation", "read committed"),
        ]))
        .await
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
