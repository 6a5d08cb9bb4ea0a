//! Why the private server cannot run, each in one line that says what to do about it.

use std::{io, path::PathBuf, process::ExitStatus};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum PrivatePostgresError {
    #[error(
        "another `easel serve` is using {}: stop it first, or give this one a --data-dir of its own",
        data_dir.display()
    )]
    AlreadyServed { data_dir: PathBuf },

    #[error(
        "the PostgreSQL of {} is in use and did not become free or ready within {waited_s} s: \
         wait for the other easel command to end, then try again",
        data_dir.display()
    )]
    Busy { data_dir: PathBuf, waited_s: u64 },

    #[error(
        "{} is too long for the path of a Unix socket: choose a --data-dir at least {excess} bytes shorter",
        path.display()
    )]
    PathTooLong { path: PathBuf, excess: usize },

    #[error(
        "no PostgreSQL {min} or newer found: install it (Debian, Ubuntu: apt install postgresql; \
         Fedora: dnf install postgresql-server; Alpine: apk add postgresql; Arch: pacman -S postgresql; \
         macOS: brew install postgresql), name the folder of its programs in PG_BIN, \
         or set DATABASE_URL to a server of your own"
    )]
    NoBinaries { min: u32 },

    #[error(
        "{} was made by PostgreSQL {made_by}, which is not installed here (found: {found}): \
         install version {made_by}, or name the folder of its programs in PG_BIN",
        cluster.display()
    )]
    OtherMajor {
        cluster: PathBuf,
        made_by: String,
        found: String,
    },

    #[error(
        "PostgreSQL refuses to run as root and there is no user postgres or nobody to run it as: \
         start easel as an ordinary user, or set DATABASE_URL"
    )]
    NoUser,

    #[error(
        "user {uid}, which PostgreSQL runs as, cannot reach {} and the system lets root make no user namespace: \
         choose a --data-dir that every user can reach, or start easel as an ordinary user",
        cluster.display()
    )]
    OutOfReach {
        cluster: PathBuf,
        uid: u32,
        #[source]
        source: Option<io::Error>,
    },

    #[error("{}: {source}: the data directory must be writable, choose another with --data-dir", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("failed to run {}: {source}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{} is not empty and contains no database: empty it, or choose another --data-dir", cluster.display())]
    NotACluster { cluster: PathBuf },

    #[error("initdb created no database in {}: {message}", cluster.display())]
    Initdb { cluster: PathBuf, message: String },

    #[error("PostgreSQL exited during startup ({status}): {message}; its log is {}", log.display())]
    EndedAtStart {
        status: ExitStatus,
        message: String,
        log: PathBuf,
    },

    #[error("PostgreSQL was not ready after {waited_s} s: see {}", log.display())]
    NotReady { waited_s: u64, log: PathBuf },

    #[error("a PostgreSQL left behind in {} (process {pid}) does not stop: kill it and try again", cluster.display())]
    LeftBehind { cluster: PathBuf, pid: u32 },

    #[error("starting the private PostgreSQL was interrupted: {0}")]
    CutShort(#[source] tokio::task::JoinError),

    #[error("could not create the database of the private PostgreSQL: {0}")]
    Database(#[source] sqlx::Error),

    #[error("the private PostgreSQL (process {pid}) did not stop within {waited_s} s")]
    NotStopped { pid: u32, waited_s: u64 },
}

impl PrivatePostgresError {
    /// For `map_err`: a file of the data directory could not be created, read or locked.
    pub(super) fn data_dir(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::DataDir { path, source }
    }
}
