//! What a gateway records in its data directory for commands: its listening address and its configuration file. Nothing
//! in it is secret.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::private_files;

const FILE: &str = "gateway.toml";
/// Held by each gateway while it runs: the file alone could be that of a killed gateway.
const LOCK: &str = "gateway.lock";

/// The records of one gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Traces {
    /// Where it listens, with the actual port.
    pub(super) address: SocketAddr,
    /// `None`: no file.
    pub(super) config: Option<PathBuf>,
}

/// A gateway counts as running while this is kept.
#[must_use = "the gateway counts as ended when this is dropped"]
pub(super) struct Running(#[expect(dead_code, reason = "held for its lock")] File);

impl Traces {
    /// Writes the records. The gateway counts as running for as long as the result is kept.
    pub(super) fn leave(&self, data_dir: &Path) -> io::Result<Running> {
        let lock = lock_file(data_dir)?;
        lock.lock_shared()?;
        let text = toml::to_string(self).map_err(io::Error::other)?;
        // Renamed into its final name, so that a command never reads a partial file.
        let staged = data_dir.join(format!("{FILE}.new"));
        let mut options = private_files::options();
        let mut file = options
            .create(true)
            .truncate(true)
            .write(true)
            .open(&staged)?;
        file.write_all(text.as_bytes())?;
        fs::rename(staged, data_dir.join(FILE))?;
        Ok(Running(lock))
    }

    /// The records of the last gateway on this data directory.
    pub(super) fn find(data_dir: &Path) -> Option<Self> {
        toml::from_str(&fs::read_to_string(data_dir.join(FILE)).ok()?).ok()
    }

    /// The records of the gateway that runs on this data directory.
    pub(super) fn of_running(data_dir: &Path) -> Option<Self> {
        let found = Self::find(data_dir)?;
        let lock = lock_file(data_dir).ok()?;
        let is_held = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        is_held.then_some(found)
    }
}

fn lock_file(data_dir: &Path) -> io::Result<File> {
    let mut options = private_files::options();
    let options = options.create(true).truncate(false).write(true);
    options.open(data_dir.join(LOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_known_to_run_for_as_long_as_it_does() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Traces::find(dir.path()).is_none());
        let traces = Traces {
            address: ([127, 0, 0, 1], 8080).into(),
            config: Some("/etc/easel.toml".into()),
        };
        let running = traces.leave(dir.path()).unwrap();
        let found = Traces::of_running(dir.path()).unwrap();
        assert_eq!(found.address, traces.address);
        drop(running);
        assert!(Traces::of_running(dir.path()).is_none());
        let found = Traces::find(dir.path()).unwrap();
        assert_eq!(found.config, traces.config);
    }
}
