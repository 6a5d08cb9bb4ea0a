//! The PostgreSQL that Easel runs for itself when no `DATABASE_URL` is set: a real server from the programs installed
//! on this machine, with its data in `<data_dir>/postgres`, reachable by a Unix socket only. Two locks keep it single:
//! `serve.lock` for the one gateway of a data directory, `postgres.lock` for the process that runs the server, a
//! gateway or a command.

mod binaries;
mod cluster;
mod database;
mod error;
mod layout;
mod process;
mod server;
mod user;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::postgres::PgConnectOptions;

pub use self::error::PrivatePostgresError;
use self::{
    layout::{Layout, Lock},
    process::ServerProcess,
};

/// How long to wait for another process that starts, uses or stops the server.
const OTHERS_WAIT: Duration = Duration::from_secs(15);
/// How long a command keeps its server running for other commands that use it.
const GUESTS_WAIT: Duration = Duration::from_secs(10);
/// A shutdown writes all memory contents to the disk.
const STOP_WAIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// A server run by this process, or another process's server that this one uses. Dropped without `stop`, our own server
/// is asked to stop but not awaited.
#[derive(Debug)]
pub struct PrivatePostgres {
    layout: Layout,
    role: Role,
}

// Fields are dropped in this order: the server is asked to stop before its locks are released.
#[derive(Debug)]
enum Role {
    Gateway {
        process: ServerProcess,
        _server: Lock,
        _serve: Lock,
    },
    Command {
        process: ServerProcess,
        _server: Lock,
    },
    Guest {
        _guest: Lock,
    },
}

impl PrivatePostgres {
    /// Runs the server of a gateway for the life of this process. Fails at once if another gateway uses the data
    /// directory; waits for a command that uses it.
    pub async fn start(data_dir: &Path) -> Result<Self, PrivatePostgresError> {
        let layout = Layout::prepare(data_dir)?;
        let Some(serve) = layout.lock_serve()? else {
            return Err(PrivatePostgresError::AlreadyServed {
                data_dir: data_dir.to_path_buf(),
            });
        };
        let deadline = Instant::now() + OTHERS_WAIT;
        let server = loop {
            if let Some(lock) = layout.lock_server()? {
                break lock;
            }
            wait_for_others(&layout, deadline).await?;
        };
        let process = server::run(&layout).await?;
        let role = Role::Gateway {
            process,
            _server: server,
            _serve: serve,
        };
        Ok(Self { layout, role })
    }

    /// Whether the data directory contains a database.
    pub fn is_in(data_dir: &Path) -> bool {
        Layout::is_made(data_dir)
    }

    /// For commands: uses the server of a running gateway or command, or else runs one until the command ends.
    pub async fn attach_or_start(data_dir: &Path) -> Result<Self, PrivatePostgresError> {
        let layout = Layout::prepare(data_dir)?;
        let deadline = Instant::now() + OTHERS_WAIT;
        loop {
            if let Some(server) = layout.lock_server()? {
                let process = server::run(&layout).await?;
                let role = Role::Command {
                    process,
                    _server: server,
                };
                return Ok(Self { layout, role });
            }
            if let Some(guest) = layout.lock_as_guest()?
                && server::is_ready(&layout).await
                && database::ensure(&layout).await.is_ok()
            {
                let role = Role::Guest { _guest: guest };
                return Ok(Self { layout, role });
            }
            wait_for_others(&layout, deadline).await?;
        }
    }

    /// Connection options: over the Unix socket, to the database `easel` as its owner.
    pub fn options(&self) -> PgConnectOptions {
        database::options(&self.layout)
    }

    /// Resolves when the server has ended for any reason. Never resolves for another process's server.
    pub async fn ended(&self) {
        match &self.role {
            Role::Gateway { process, .. } | Role::Command { process, .. } => process.ended().await,
            Role::Guest { .. } => std::future::pending().await,
        }
    }

    /// Requests a fast shutdown, which rolls back open transactions, and waits for the server to end. A command first
    /// waits for others that use its server. Leaves another process's server running.
    pub async fn stop(self) -> Result<(), PrivatePostgresError> {
        match &self.role {
            Role::Gateway { process, .. } => end(process).await,
            Role::Command { process, .. } => {
                let _guests = self.see_guests_off().await?;
                end(process).await
            }
            Role::Guest { .. } => Ok(()),
        }
    }

    /// No guest can start while the lock is held. `None` if a guest stayed too long.
    async fn see_guests_off(&self) -> Result<Option<Lock>, PrivatePostgresError> {
        let deadline = Instant::now() + GUESTS_WAIT;
        loop {
            let lock = self.layout.lock_out_guests()?;
            if lock.is_some() || Instant::now() > deadline {
                return Ok(lock);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn end(process: &ServerProcess) -> Result<(), PrivatePostgresError> {
    process.interrupt();
    tokio::time::timeout(STOP_WAIT, process.ended())
        .await
        .map_err(|_elapsed| PrivatePostgresError::NotStopped {
            pid: process.pid(),
            waited_s: STOP_WAIT.as_secs(),
        })
}

async fn wait_for_others(layout: &Layout, deadline: Instant) -> Result<(), PrivatePostgresError> {
    if Instant::now() > deadline {
        return Err(PrivatePostgresError::Busy {
            data_dir: layout.data_dir.clone(),
            waited_s: OTHERS_WAIT.as_secs(),
        });
    }
    tokio::time::sleep(POLL).await;
    Ok(())
}
