//! Why the private server cannot run, each in one line that says what to do about it.

use std::{io, path::PathBuf, process::ExitStatus};

use thiserror::Error;

/// Why the private server cannot run. The texts are for the operator.
#[derive(Debug, Error)]
pub enum PrivatePostgresError {
    /// Another gateway holds the lock of the data directory.
    #[error(
        "another `easel serve` is using {}: stop it first, or give this one a --data-dir of its own",
        data_dir.display()
    )]
    AlreadyServed {
        /// The data directory.
        data_dir: PathBuf,
    },

    /// Another process holds the lock of the server, or is starting it.
    #[error(
        "the PostgreSQL of {} is in use and did not become free or ready within {waited_s} s: \
         wait for the other easel command to end, then try again",
        data_dir.display()
    )]
    Busy {
        /// The data directory.
        data_dir: PathBuf,
        /// How long this process has waited.
        waited_s: u64,
    },

    /// The system limits the paths of sockets to about a hundred bytes.
    #[error(
        "{} is too long for the path of a Unix socket: choose a --data-dir at least {excess} bytes shorter",
        path.display()
    )]
    PathTooLong {
        /// The path of the socket.
        path: PathBuf,
        /// How many bytes it has too many.
        excess: usize,
    },

    /// None of the folders searched has both programs in a version that can be used.
    #[error(
        "no PostgreSQL {min} or newer found: install it (Debian, Ubuntu: apt install postgresql; \
         Fedora: dnf install postgresql-server; Alpine: apk add postgresql; Arch: pacman -S postgresql; \
         macOS: brew install postgresql), name the folder of its programs in PG_BIN, \
         or set DATABASE_URL to a server of your own"
    )]
    NoBinaries {
        /// The oldest version that can be used.
        min: u32,
    },

    /// A cluster can be served only by the major version that created it.
    #[error(
        "{} was made by PostgreSQL {made_by}, which is not installed here (found: {found}): \
         install version {made_by}, or name the folder of its programs in PG_BIN",
        cluster.display()
    )]
    OtherMajor {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// Its major version.
        made_by: String,
        /// The versions installed here, separated by commas.
        found: String,
    },

    /// This process runs as root.
    #[error(
        "PostgreSQL refuses to run as root and there is no user postgres or nobody to run it as: \
         start easel as an ordinary user, or set DATABASE_URL"
    )]
    NoUser,

    /// A folder above the cluster is closed to the server's user.
    #[error(
        "user {uid}, which PostgreSQL runs as, cannot reach {} and the system lets root make no user namespace: \
         choose a --data-dir that every user can reach, or start easel as an ordinary user",
        cluster.display()
    )]
    OutOfReach {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// The server's user.
        uid: u32,
        /// Why the server did not start in a user namespace; `None`: the system has none.
        #[source]
        source: Option<io::Error>,
    },

    /// A file or folder cannot be created, read or locked.
    #[error("{}: {source}: the data directory must be writable, choose another with --data-dir", path.display())]
    DataDir {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },

    /// A program cannot be started.
    #[error("failed to run {}: {source}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },

    /// The folder holds other files.
    #[error("{} is not empty and contains no database: empty it, or choose another --data-dir", cluster.display())]
    NotACluster {
        /// The folder of the cluster.
        cluster: PathBuf,
    },

    /// `initdb` ran and failed.
    #[error("initdb created no database in {}: {message}", cluster.display())]
    Initdb {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// The end of what it printed.
        message: String,
    },

    /// The server ended before it accepted connections.
    #[error("PostgreSQL exited during startup ({status}): {message}; its log is {}", log.display())]
    EndedAtStart {
        /// How it exited.
        status: ExitStatus,
        /// The end of its log.
        message: String,
        /// The path of its log.
        log: PathBuf,
    },

    /// The server runs but accepts no connections.
    #[error("PostgreSQL was not ready after {waited_s} s: see {}", log.display())]
    NotReady {
        /// How long this process has waited.
        waited_s: u64,
        /// The path of its log.
        log: PathBuf,
    },

    /// The server of a killed gateway still runs.
    #[error("a PostgreSQL left behind in {} (process {pid}) does not stop: kill it and try again", cluster.display())]
    LeftBehind {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// The server's process id.
        pid: u32,
    },

    /// The thread that works on the files has panicked or was cancelled.
    #[error("starting the private PostgreSQL was interrupted: {0}")]
    CutShort(#[source] tokio::task::JoinError),

    /// A statement failed on a running server.
    #[error("could not create the database of the private PostgreSQL: {0}")]
    Database(#[source] sqlx::Error),

    /// The server ignores the request to stop.
    #[error("the private PostgreSQL (process {pid}) did not stop within {waited_s} s")]
    NotStopped {
        /// The server's process id.
        pid: u32,
        /// How long this process has waited.
        waited_s: u64,
    },
}

impl PrivatePostgresError {
    /// For `map_err`: a file of the data directory could not be created, read or locked.
    pub(super) fn data_dir(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::DataDir { path, source }
    }
}
