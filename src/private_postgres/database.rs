//! Connects to the private server and creates its one database.

use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::{error::PrivatePostgresError, layout::Layout};

const NO_SUCH_DATABASE: &str = "3D000";
/// Errors when two processes create it at once: one from the check, one from the catalog's index.
const ALREADY_THERE: [&str; 2] = ["42P04", "23505"];

/// Overrides what the `PG…` environment variables say about another server, except `PGOPTIONS`.
pub(super) fn options(layout: &Layout) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(&layout.socket_dir)
        .port(5432)
        .username("easel")
        .database("easel")
        .application_name("easel")
        .ssl_mode(PgSslMode::Disable)
}

/// Creates the database if it is missing. Several processes may do so at once.
pub(super) async fn ensure(layout: &Layout) -> Result<(), PrivatePostgresError> {
    try_ensure(layout)
        .await
        .map_err(PrivatePostgresError::Database)
}

async fn try_ensure(layout: &Layout) -> Result<(), sqlx::Error> {
    let options = options(layout);
    match PgConnection::connect_with(&options).await {
        Ok(connection) => return connection.close().await,
        Err(error) if has_code(&error, &[NO_SUCH_DATABASE]) => {}
        Err(error) => return Err(error),
    }
    let mut connection = PgConnection::connect_with(&options.database("postgres")).await?;
    match sqlx::query("CREATE DATABASE easel")
        .execute(&mut connection)
        .await
    {
        Err(error) if !has_code(&error, &ALREADY_THERE) => return Err(error),
        _ => {}
    }
    connection.close().await
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| codes.contains(&&*code))
}
