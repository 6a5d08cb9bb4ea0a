//! The database that a command works on: the configured one, or the private one, whether or not a gateway is running
//! it.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use crate::{
    config::Config,
    db::{self, TimeZoneError},
    private_postgres::PrivatePostgres,
};

const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// A migrated database, with its server if it is the private one.
pub(super) struct Database {
    /// Connections to it.
    pub(super) pool: db::Pool,
    /// The private server, to be stopped at the end; `None`: `database.url` is set.
    pub(super) private: Option<PrivatePostgres>,
    /// Whether it was just created.
    pub(super) is_new: bool,
}

/// How long the private server is needed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// As long as the gateway runs. It may create the database.
    Serve,
    /// For one command, which shares the server of a running gateway and creates nothing.
    Command,
}

impl Database {
    /// Opens the database and migrates it. Fails for a command if there is no database yet.
    pub(super) async fn open(config: &Config, purpose: Purpose) -> anyhow::Result<Self> {
        let is_new = config.database.url.is_none() && !PrivatePostgres::is_in(&config.data_dir);
        let (options, private) = if let Some(url) = &config.database.url {
            let options = PgConnectOptions::from_str(url.expose_secret())
                .context("database.url is not a postgres:// URL")?;
            (options, None)
        } else {
            let private = match purpose {
                Purpose::Serve => PrivatePostgres::start(&config.data_dir).await?,
                Purpose::Command if is_new => bail!("{}", no_database(&config.data_dir)),
                Purpose::Command => PrivatePostgres::attach_or_start(&config.data_dir).await?,
            };
            (private.options(), Some(private))
        };
        let opened = Self::connect(options, config).await;
        match opened {
            Ok(pool) => Ok(Self {
                pool,
                private,
                is_new,
            }),
            Err(error) => {
                if let Some(private) = private {
                    private.stop().await?;
                }
                Err(error)
            }
        }
    }

    async fn connect(options: PgConnectOptions, config: &Config) -> anyhow::Result<db::Pool> {
        let pool = db::open(options, &config.database)
            .await
            .context("could not connect to the database: check database.url, or DATABASE_URL")?;
        db::migrate(&pool)
            .await
            .context("could not migrate the database schema")?;
        match db::check_time_zone(&pool, &config.billing.time_zone).await {
            Ok(()) => Ok(pool),
            Err(TimeZoneError::Unknown) => Err(anyhow!(
                "billing.time_zone must be a time zone that PostgreSQL knows, like Asia/Shanghai"
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Resolves if the private server ends. Never resolves without one.
    pub(super) async fn ended(&self) {
        match &self.private {
            Some(private) => private.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Closes the connections, then stops the private server if this process runs it.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        // An unresponsive server must not prevent the process from ending.
        if timeout(CLOSE_WAIT, self.pool.close()).await.is_err() {
            tracing::warn!("could not close all database connections");
        }
        if let Some(private) = self.private {
            private.stop().await?;
        }
        Ok(())
    }
}

/// Commands create no database: one in the wrong directory would only hide the right one.
fn no_database(data_dir: &Path) -> String {
    let data_dir = absolute(data_dir);
    format!(
        "there is no database in {}: `easel serve` creates one there; choose another with --data-dir, by \
         --config or EASEL_CONFIG, or by DATABASE_URL",
        data_dir.display()
    )
}

/// The path as it can be used from any directory.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
