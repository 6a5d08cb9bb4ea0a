//! The private server's paths in the data directory, and its locks.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use super::error::PrivatePostgresError;
use crate::private_files;

/// `sun_path` holds 104 bytes on macOS and 108 on Linux. `/.s.PGSQL.5432` and the final NUL take 15, and the server
/// adds `.lock` for a file beside the socket.
const SOCKET_DIR_BYTES_MAX: usize = 88;

const UNFINISHED: &str = "postgres.unfinished";

/// The paths of one private server.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The configured one, which exists.
    pub(super) data_dir: PathBuf,
    /// The real, absolute path of the cluster.
    pub(super) cluster: PathBuf,
    /// The shortest path of the cluster: clients find the socket there.
    pub(super) socket_dir: PathBuf,
}

/// A lock on a file. It is released explicitly and not only by closing: a process being started at that moment may
/// briefly hold a copy of the file.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing has the same effect once no copy is open.
        drop(self.0.unlock());
    }
}

impl Layout {
    /// Creates the missing directories.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, PrivatePostgresError> {
        let given = data_dir.join("postgres");
        private_files::make_data_dir(data_dir)
            .and_then(|()| std::fs::create_dir_all(&given))
            .map_err(PrivatePostgresError::data_dir(&given))?;
        let cluster = given
            .canonicalize()
            .map_err(PrivatePostgresError::data_dir(&given))?;
        let socket_dir = if cluster.as_os_str().len() < given.as_os_str().len() {
            cluster.clone()
        } else {
            given
        };
        let length = socket_dir.as_os_str().len();
        if length > SOCKET_DIR_BYTES_MAX {
            return Err(PrivatePostgresError::PathTooLong {
                path: socket_dir,
                excess: length - SOCKET_DIR_BYTES_MAX,
            });
        }
        Ok(Self {
            data_dir: data_dir.to_path_buf(),
            cluster,
            socket_dir,
        })
    }

    /// Whether a complete cluster exists. Creates nothing.
    pub(super) fn is_made(data_dir: &Path) -> bool {
        data_dir.join("postgres/PG_VERSION").exists() && !data_dir.join(UNFINISHED).exists()
    }

    /// The server's log.
    pub(super) fn log(&self) -> PathBuf {
        self.cluster.join("server.log")
    }

    /// The socket that clients connect to.
    pub(super) fn socket(&self) -> PathBuf {
        self.socket_dir.join(".s.PGSQL.5432")
    }

    /// Exists while the cluster is being created. Until it is removed, the cluster is not a database.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.data_dir.join(UNFINISHED)
    }

    /// Held by the one `easel serve` of this data directory.
    pub(super) fn lock_serve(&self) -> Result<Option<Lock>, PrivatePostgresError> {
        self.lock("serve.lock", File::try_lock)
    }

    /// Held by the process that runs the server.
    pub(super) fn lock_server(&self) -> Result<Option<Lock>, PrivatePostgresError> {
        self.lock("postgres.lock", File::try_lock)
    }

    /// Shared by commands that use another command's server.
    pub(super) fn lock_as_guest(&self) -> Result<Option<Lock>, PrivatePostgresError> {
        self.lock("postgres.guests.lock", File::try_lock_shared)
    }

    /// Available once no guest is left. While it is held, no guest can start.
    pub(super) fn lock_out_guests(&self) -> Result<Option<Lock>, PrivatePostgresError> {
        self.lock("postgres.guests.lock", File::try_lock)
    }

    fn lock(
        &self,
        name: &str,
        try_lock: fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<Lock>, PrivatePostgresError> {
        let path = self.data_dir.join(name);
        let file = private_files::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PrivatePostgresError::data_dir(&path))?;
        match try_lock(&file) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(PrivatePostgresError::DataDir { path, source }),
        }
    }
}
