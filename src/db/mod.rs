//! The database: connection setup, time limits, and migrations.

mod advice;
mod kept;
mod listener;
mod notify;
mod pool;
mod time;
mod transaction;
mod trouble;

use std::time::Duration;

use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::types::PgInterval,
};

pub use advice::{Advice, Effect, advice};
pub use kept::{Keeper, KeptConnection};
pub use listener::{Heard, Listener, PRESENCE_LOCK, is_another_alive};
pub use notify::{RELOAD_CHANNEL, notify};
pub use pool::{Patience, Pool, acquire, open};
pub use time::DatabaseTime;
pub use transaction::{Transaction, begin};

pub use trouble::{Trouble, is_timeout, trouble};

/// A duration as PostgreSQL has it.
pub fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Migrates the schema to the current version. Safe to run from several processes at once. Uses a connection of its
/// own, because a migration may wait for a lock and run longer than a request.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    let mut conn = PgConnection::connect_with(&pool.connect_options()).await?;
    let migrated = MIGRATIONS.run(&mut conn).await;
    conn.close().await?;
    migrated
}

/// Why a time zone name was rejected.
#[derive(Debug, thiserror::Error)]
pub enum TimeZoneError {
    /// No time zone has this name.
    #[error("PostgreSQL does not know this time zone")]
    Unknown,
    /// The query failed.
    #[error("could not check the time zone in the database")]
    Database(#[from] sqlx::Error),
}

/// `invalid_parameter_value`: PostgreSQL's error for an unknown time zone.
const UNKNOWN_TIME_ZONE: &str = "22023";

/// Checks that PostgreSQL knows a time zone by this name.
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
