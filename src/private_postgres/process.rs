//! The server's process: drops root, ends with this process, and receives signals. The only module with `unsafe` code.

#[cfg(target_os = "linux")]
use std::ffi::CStr;
use std::{
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use tokio::sync::{oneshot, watch};

use rustix::process::{Pid, Signal, kill_process};

use super::user::RunAs;

/// A running server. Dropping this asks it to stop.
#[derive(Debug)]
pub(super) struct ServerProcess {
    pid: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl ServerProcess {
    /// Starts the server. It is killed when this process ends, however that happens.
    pub(super) async fn spawn(mut command: Command) -> io::Result<Self> {
        let (exit_tx, exit) = watch::channel(None);
        let (pid_tx, pid_rx) = oneshot::channel();
        // The kernel sends the parent-death signal when the *thread* that forked ends, so the server gets a thread that
        // lives as long as it does.
        std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || match command.spawn() {
                Ok(mut child) => {
                    if pid_tx.send(Ok(child.id())).is_err() {
                        interrupt(child.id()); // nobody waits for it any more
                    }
                    let status = child.wait();
                    exit_tx.send_replace(status.ok());
                }
                Err(error) => drop(pid_tx.send(Err(error))),
            })?;
        let pid = pid_rx.await.map_err(io::Error::other)??;
        Ok(Self { pid, exit })
    }

    /// The process id of the server.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status, if it has ended.
    pub(super) fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Returns once the server has ended.
    pub(super) async fn ended(&self) {
        // An error means that the thread has ended, which happens only after the server ends.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }

    /// Requests a fast shutdown, which rolls back open transactions.
    pub(super) fn interrupt(&self) {
        if self.exit().is_none() {
            interrupt(self.pid);
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.interrupt();
    }
}

/// A PostgreSQL program with an empty environment. It ends with the thread that starts it.
pub(super) fn command(program: &Path, run_as: RunAs) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0); // a terminal's Ctrl-C is for the gateway, which then stops the server
    if let RunAs::Other(user) = run_as {
        command.uid(user.uid).gid(user.gid);
    }
    #[cfg(target_os = "linux")]
    before_exec(&mut command, run_as);
    command
}

/// Asks a server for a fast shutdown: std can only kill, which a server takes as a crash.
pub(super) fn interrupt(pid: u32) {
    // 0 and negative numbers are whole process groups; 1 is never a server of ours.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1);
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // Fails only if the server has exited.
        kill_process(pid, Signal::INT).ok();
    }
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "namespaces and the parent-death signal are set between fork and exec"
)]
fn before_exec(command: &mut Command, run_as: RunAs) {
    let maps: Vec<(&CStr, String)> = match run_as {
        RunAs::Mapped(user) => vec![
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", format!("{} 0 1", user.uid)),
            (c"/proc/self/gid_map", format!("{} 0 1", user.gid)),
        ],
        RunAs::Myself | RunAs::Other(_) => Vec::new(),
    };
    let parent = std::process::id();
    let prepare = move || {
        if !maps.is_empty() {
            // SAFETY: changes only the new process.
            check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
        }
        for (path, text) in &maps {
            write_to(path, text)?;
        }
        // After every change of user, which would reset it. SAFETY: plain numbers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) })?;
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::getppid() }.cast_unsigned() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH)); // it died before it could signal
        }
        Ok(())
    };
    // SAFETY: only async-signal-safe calls; nothing is allocated after the fork.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "std's files are not promised to be safe between fork and exec"
)]
fn write_to(path: &CStr, text: &str) -> io::Result<()> {
    // SAFETY: the path ends with NUL.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    check(file)?;
    // SAFETY: reads `text.len()` bytes of `text`.
    let written = unsafe { libc::write(file, text.as_ptr().cast(), text.len()) };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: opened above, not used again.
    check(unsafe { libc::close(file) })
}

#[cfg(target_os = "linux")]
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
