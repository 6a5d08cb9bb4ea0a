//! One gateway process, with the proxies by which it reaches its database and its store.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::Mutex,
};

use super::fault_proxy::FaultProxy;

const START_WAIT: Duration = Duration::from_mins(1);
/// How long a shutdown may take beyond the time allowed for draining.
const END_SLACK: Duration = Duration::from_secs(10);
/// How long a shutdown waits for running tasks.
pub(super) const DRAIN: Duration = Duration::from_secs(20);

/// A gateway process that can be stopped and restarted.
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    /// The proxy in front of the database.
    pub(super) database: FaultProxy,
    /// The proxy in front of the store.
    pub(super) storage: FaultProxy,
    program: PathBuf,
    dir: PathBuf,
    database_url: String,
    child: Mutex<Option<Child>>,
}

/// How a replica was shut down, and how it ended.
pub(super) struct Ended {
    pub(super) status: Option<ExitStatus>,
    pub(super) took: Duration,
}

impl Replica {
    pub(super) fn new(
        program: &Path,
        dir: PathBuf,
        address: SocketAddr,
        (database, storage): (FaultProxy, FaultProxy),
        settings: &str,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("easel.toml"), settings)?;
        let database_url = format!(
            "postgres://easel@{}/easel?sslmode=disable",
            database.address()
        );
        Ok(Self {
            address,
            database,
            storage,
            program: program.to_path_buf(),
            dir,
            database_url,
            child: Mutex::new(None),
        })
    }

    /// Starts it without waiting until it is ready.
    pub(super) async fn start(&self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let mut command = Command::new(&self.program);
        command.env_clear();
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command
            .env("DATABASE_URL", &self.database_url)
            .current_dir(&self.dir)
            .arg("--config")
            .arg(self.dir.join("easel.toml"))
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["serve", "--listen", &self.address.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        *self.child.lock().await = Some(child);
        Ok(())
    }

    /// Waits until it listens: the first replica creates the schema.
    pub(super) async fn wait_until_it_listens(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            ensure!(began.elapsed() < START_WAIT, "a replica does not start");
            if self.has_ended().await? {
                bail!("a replica ended at its start, see {}", self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether it has ended without being told to.
    pub(super) async fn has_ended(&self) -> anyhow::Result<bool> {
        match self.child.lock().await.as_mut() {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    pub(super) async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.lock().await;
        let id = child.as_ref().and_then(Child::id).context("it has ended")?;
        let pid = Pid::from_raw(i32::try_from(id)?).context("the process id is out of range")?;
        Ok(kill_process(pid, signal)?)
    }

    pub(super) async fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL).await?;
        if let Some(child) = self.child.lock().await.as_mut() {
            child.wait().await?;
        }
        Ok(())
    }

    /// Shuts it down; kills it if it takes too long.
    pub(super) async fn end(&self) -> anyhow::Result<Ended> {
        let began = Instant::now();
        self.signal(Signal::TERM).await?;
        let mut child = self.child.lock().await;
        let child = child.as_mut().context("it has ended")?;
        let ended = tokio::time::timeout(DRAIN + END_SLACK, child.wait()).await;
        let status = ended.ok().transpose()?;
        if status.is_none() {
            child.kill().await?;
        }
        Ok(Ended {
            status,
            took: began.elapsed(),
        })
    }
}
