//! The database: how connections are set up, how long it may take to answer, and the migrations.

mod listener;
mod pool;
mod trouble;

use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
};

pub use listener::{Heard, Listener, PRESENCE_LOCK};
pub use pool::{Patience, Pool, acquire, begin, open};
pub use trouble::{Trouble, is_timeout, trouble};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Brings the schema up to date. Safe to run from several processes at once. On a connection of its own:
/// a migration may wait for a lock, and take, longer than a request.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    let mut conn = PgConnection::connect_with(&pool.connect_options()).await?;
    let migrated = MIGRATIONS.run(&mut conn).await;
    conn.close().await?;
    migrated
}

/// Why a name could not be taken as that of a time zone.
#[derive(Debug, thiserror::Error)]
pub enum TimeZoneError {
    #[error("PostgreSQL knows no such time zone")]
    Unknown,
    #[error("the database could not be asked for the time zone")]
    Database(#[from] sqlx::Error),
}

/// `invalid_parameter_value`, as PostgreSQL answers to a time zone that it does not know.
const UNKNOWN_TIME_ZONE: &str = "22023";

/// Whether PostgreSQL knows a time zone by this name.
pub async fn check_time_zone(pool: &PgPool, name: &str) -> Result<(), TimeZoneError> {
    let asked = sqlx::query("SELECT now() AT TIME ZONE $1")
        .bind(name)
        .execute(pool)
        .await;
    match asked {
        Ok(_) => Ok(()),
        Err(error) if trouble::is_code(&error, &[UNKNOWN_TIME_ZONE]) => Err(TimeZoneError::Unknown),
        Err(error) => Err(error.into()),
    }
}
