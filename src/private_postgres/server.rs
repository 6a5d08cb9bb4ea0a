//! Runs the server: starts the cluster with Easel's settings and waits until it is ready. Callers must hold the
//! server's lock.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use super::{
    binaries::Binaries,
    cluster::{self, PidFile},
    database,
    error::PrivatePostgresError,
    layout::Layout,
    process::{self, ServerProcess},
    user::RunAs,
};

/// Replaying the WAL after a crash takes a while.
const READY_WAIT: Duration = Duration::from_mins(2);
/// How long the backends of a killed postmaster may take to notice it.
const ORPHANS_WAIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(200);
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;

const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_directories=.",
    "unix_socket_permissions=0700",
    "port=5432",
    "max_connections=120",
    "shared_buffers=128MB",
    // An acknowledged request must survive a power failure.
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    // A write-heavy load must not checkpoint constantly.
    "min_wal_size=256MB",
    "max_wal_size=1GB",
    "checkpoint_timeout=15min",
    "checkpoint_completion_target=0.9",
    // All statements are short, so neither pays off, and containers have little shared memory.
    "jit=off",
    "max_parallel_workers_per_gather=0",
    // Task rows are updated several times each and then never again.
    "autovacuum=on",
    "autovacuum_naptime=15s",
    "autovacuum_vacuum_scale_factor=0.05",
    "autovacuum_analyze_scale_factor=0.05",
    "timezone=UTC",
    // Easel logs its own errors. Statements and details may contain prompts, which must not be logged.
    "logging_collector=off",
    "log_destination=stderr",
    "log_min_messages=log",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_checkpoints=off",
    "log_timezone=UTC",
];

/// Creates what is missing, starts the server and returns once its database is usable.
pub(super) async fn run(layout: &Layout) -> Result<ServerProcess, PrivatePostgresError> {
    cluster::clear_leftover(layout).await?;
    let prepared = layout.clone();
    let (plan, is_new) = blocking(move || prepare(&prepared)).await?;
    let process = launch(layout, &plan).await?;
    if !is_new {
        database::ensure(layout).await?;
        return Ok(process);
    }
    let syncing = layout.clone();
    let synced = blocking(move || cluster::sync(&syncing, &plan.binaries, plan.run_as));
    tokio::try_join!(synced, database::ensure(layout))?;
    Ok(process)
}

/// Whether a server accepts connections. A socket and a file may be left over without a listener. An unfinished cluster
/// does not count, because it may still be discarded.
pub(super) async fn is_ready(layout: &Layout) -> bool {
    PidFile::read(&layout.cluster).is_some_and(|file| file.is_ready)
        && !layout.unfinished().exists()
        && tokio::net::UnixStream::connect(layout.socket())
            .await
            .is_ok()
}

struct Plan {
    binaries: Binaries,
    run_as: RunAs,
}

fn prepare(layout: &Layout) -> Result<(Plan, bool), PrivatePostgresError> {
    let is_new = cluster::is_missing(layout)?;
    let binaries = Binaries::find(&layout.cluster)?;
    let run_as = RunAs::choose(layout)?;
    if is_new {
        cluster::make(layout, &binaries, run_as)?;
    }
    rotate(&layout.log())?;
    Ok((Plan { binaries, run_as }, is_new))
}

async fn launch(layout: &Layout, plan: &Plan) -> Result<ServerProcess, PrivatePostgresError> {
    let deadline = Instant::now() + ORPHANS_WAIT;
    loop {
        match launch_once(layout, plan).await {
            Err(PrivatePostgresError::EndedAtStart { message, .. })
                if message.contains("still in use") && Instant::now() < deadline =>
            {
                tokio::time::sleep(RETRY).await;
            }
            result => return result,
        }
    }
}

async fn launch_once(layout: &Layout, plan: &Plan) -> Result<ServerProcess, PrivatePostgresError> {
    let path = layout.log();
    let failed = PrivatePostgresError::data_dir(&path);
    let (log, said_before, command) = server_command(layout, plan).map_err(failed)?;
    let process = ServerProcess::spawn(command).await.map_err(|source| {
        plan.run_as
            .cannot_run(plan.binaries.postgres(), layout, source)
    })?;
    let deadline = Instant::now() + READY_WAIT;
    loop {
        if let Some(status) = process.exit() {
            return Err(ended_at_start(layout, status, log, said_before));
        }
        // Its own file shows when *this* server is ready: a connection might reach another one.
        if PidFile::read(&layout.cluster)
            .is_some_and(|file| file.is_ready && file.pid == process.pid())
        {
            return Ok(process);
        }
        if Instant::now() > deadline {
            return Err(PrivatePostgresError::NotReady {
                waited_s: READY_WAIT.as_secs(),
                log: path,
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Also returns the log file and its current length.
fn server_command(layout: &Layout, plan: &Plan) -> std::io::Result<(File, u64, Command)> {
    let log = File::options()
        .create(true)
        .read(true)
        .append(true)
        .open(layout.log())?;
    let mut command = process::command(&plan.binaries.postgres(), plan.run_as);
    command.arg("-D").arg(&layout.cluster);
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    let said_before = log.metadata()?.len();
    Ok((log, said_before, command))
}

fn ended_at_start(
    layout: &Layout,
    status: ExitStatus,
    mut log: File,
    said_before: u64,
) -> PrivatePostgresError {
    let mut said = Vec::new();
    let read = log
        .seek(SeekFrom::Start(said_before))
        .and_then(|_| log.read_to_end(&mut said));
    let text = String::from_utf8_lossy(&said);
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("FATAL:"))
        .collect();
    if lines.is_empty() || read.is_err() {
        lines = text.lines().collect();
        lines.drain(..lines.len().saturating_sub(3));
    }
    PrivatePostgresError::EndedAtStart {
        status,
        message: lines.join(" | "),
        log: layout.log(),
    }
}

/// Keeps one older log besides the current one.
fn rotate(log: &Path) -> Result<(), PrivatePostgresError> {
    if fs::metadata(log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(log, log.with_extension("log.old"))
            .map_err(PrivatePostgresError::data_dir(log))?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PrivatePostgresError> + Send + 'static,
) -> Result<T, PrivatePostgresError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PrivatePostgresError::CutShort(error)),
    }
}
