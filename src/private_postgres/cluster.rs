//! The files of the private server: creates them with `initdb` and cleans up after a killed server. Callers must hold
//! the server's lock.

use std::{
    fs, io,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use super::{
    binaries::Binaries, error::PrivatePostgresError, layout::Layout, process, user::RunAs,
};

const LEFTOVER_WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Creates the cluster if there is none, without waiting for the disk: see `sync`.
pub(super) fn make(
    layout: &Layout,
    binaries: &Binaries,
    run_as: RunAs,
) -> Result<(), PrivatePostgresError> {
    let unfinished = layout.unfinished();
    fs::write(&unfinished, "").map_err(PrivatePostgresError::data_dir(&unfinished))?;
    let arguments = [
        "--username=easel",
        "--encoding=UTF8",
        "--locale=C",
        "--auth-local=trust",
        "--auth-host=reject",
        "--no-sync",
    ];
    initdb(layout, binaries, run_as, &arguments)
}

/// Waits until a new cluster is on the disk. Only then does it count as complete.
pub(super) fn sync(
    layout: &Layout,
    binaries: &Binaries,
    run_as: RunAs,
) -> Result<(), PrivatePostgresError> {
    initdb(layout, binaries, run_as, &["--sync-only"])?;
    let unfinished = layout.unfinished();
    fs::remove_file(&unfinished).map_err(PrivatePostgresError::data_dir(&unfinished))
}

/// Whether the cluster must still be created. Removes what an interrupted attempt left, and no files of others.
pub(super) fn is_missing(layout: &Layout) -> Result<bool, PrivatePostgresError> {
    let cluster = &layout.cluster;
    if layout.unfinished().exists() {
        empty(cluster).map_err(PrivatePostgresError::data_dir(cluster))?;
        return Ok(true);
    }
    if cluster.join("PG_VERSION").exists() {
        return Ok(false);
    }
    let mut entries = fs::read_dir(cluster).map_err(PrivatePostgresError::data_dir(cluster))?;
    if entries.next().is_some() {
        return Err(PrivatePostgresError::NotACluster {
            cluster: cluster.clone(),
        });
    }
    Ok(true)
}

/// Stops the server of a killed gateway if it still runs, and removes its files if another program now has its process
/// id, which PostgreSQL would take for a server. If that process is gone, PostgreSQL handles the stale file: it also
/// checks for backends that outlived their postmaster.
pub(super) async fn clear_leftover(layout: &Layout) -> Result<(), PrivatePostgresError> {
    let cluster = &layout.cluster;
    let Some(pid) = PidFile::read(cluster).map(|file| file.pid) else {
        return Ok(());
    };
    let deadline = Instant::now() + LEFTOVER_WAIT;
    let mut asked = false;
    while let Some(command_line) = command_line(pid) {
        if !command_line.contains(&format!(" -D {} ", cluster.display())) {
            for name in ["postmaster.pid", ".s.PGSQL.5432.lock", ".s.PGSQL.5432"] {
                remove_if_there(&cluster.join(name))?;
            }
            return Ok(());
        }
        if !asked {
            process::interrupt(pid);
            asked = true;
        }
        if Instant::now() > deadline {
            return Err(PrivatePostgresError::LeftBehind {
                cluster: cluster.clone(),
                pid,
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The contents of `postmaster.pid`.
pub(super) struct PidFile {
    /// The server's process id, which may be that of another process by now.
    pub(super) pid: u32,
    /// Whether the server accepted connections when it last wrote the file.
    pub(super) is_ready: bool,
}

impl PidFile {
    /// Reads the file. `None`: it does not exist or is incomplete.
    pub(super) fn read(cluster: &Path) -> Option<Self> {
        let text = fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next()?.parse().ok()?;
        let is_ready = lines.nth(6) == Some("ready");
        Some(Self { pid, is_ready })
    }
}

fn initdb(
    layout: &Layout,
    binaries: &Binaries,
    run_as: RunAs,
    arguments: &[&str],
) -> Result<(), PrivatePostgresError> {
    let output = process::command(&binaries.initdb(), run_as)
        .args(arguments)
        .arg("-D")
        .arg(&layout.cluster)
        .output()
        .map_err(|source| run_as.cannot_run(binaries.initdb(), layout, source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PrivatePostgresError::Initdb {
        cluster: layout.cluster.clone(),
        message: complaint(&output),
    })
}

/// The error lines of `initdb`, without its cleanup messages and hints.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            ["error:", "FATAL:", "PANIC:"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    if lines.is_empty() {
        format!("{}: {}", output.status, text.trim().replace('\n', " | "))
    } else {
        lines.join(" | ")
    }
}

/// The command line of a live process, with a space before and after each word.
fn command_line(pid: u32) -> Option<String> {
    let bytes = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(bytes) => bytes,
        Err(_) if cfg!(target_os = "linux") => return None,
        Err(_) => {
            let mut ps = Command::new("ps");
            ps.args(["-o", "command=", "-p", &pid.to_string()]);
            ps.output().ok()?.stdout
        }
    };
    let text = String::from_utf8_lossy(&bytes).replace(['\0', '\n'], " ");
    // Empty for a process that has ended but was not reaped yet.
    (!text.trim().is_empty()).then(|| format!(" {text} "))
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), PrivatePostgresError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PrivatePostgresError::DataDir {
                path: path.to_path_buf(),
                source,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn failed(stderr: &str) -> Output {
        Output {
            status: ExitStatus::from_raw(0x100),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_complaint_is_one_line() {
        let full = "initdb: error: could not write file \"x\": No space left on device\n\
                    initdb: removing contents of data directory \"x\"\n";
        assert_eq!(
            complaint(&failed(full)),
            "initdb: error: could not write file \"x\": No space left on device"
        );
        assert_eq!(
            complaint(&failed("one\ntwo\n")),
            "exit status: 1: one | two"
        );
    }

    #[test]
    fn the_pid_file_says_when_the_server_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        assert!(PidFile::read(dir.path()).is_none());
        let path = dir.path().join("postmaster.pid");
        fs::write(&path, "42\n/d\n1\n5432\n.\n\n 1 2\nstarting\n").unwrap();
        assert!(!PidFile::read(dir.path()).unwrap().is_ready);
        fs::write(&path, "42\n/d\n1\n5432\n.\n\n 1 2\nready   \n").unwrap();
        let file = PidFile::read(dir.path()).unwrap();
        assert_eq!((file.pid, file.is_ready), (42, true));
        fs::write(&path, "").unwrap();
        assert!(PidFile::read(dir.path()).is_none());
    }
}
