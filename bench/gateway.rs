//! The gateway under test: a process with its own data directory, and the memory and processor time it uses.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as AsyncCommand},
};

use super::{
    load::{Extent, Load},
    peers::{self, Processors},
    report::number,
    wire,
};

const START_WAIT: Duration = Duration::from_mins(1);
const END_WAIT: Duration = Duration::from_mins(1);
/// Smaller files are kept.
const EMPTIED_BYTES_MIN: u64 = 64 * 1024;
/// The unit of processor time on Linux.
const TICK: Duration = Duration::from_millis(10);

/// Where and with which settings a gateway runs.
pub(super) struct Site {
    program: PathBuf,
    /// The disk that is measured.
    pub(super) dir: PathBuf,
    /// The gateway has one of them for itself.
    processors: Option<Processors>,
}

/// A running gateway.
pub(super) struct Gateway {
    /// The address it listens on.
    pub(super) address: SocketAddr,
    /// From its start until it reported that it was ready.
    pub(super) start: Duration,
    child: Child,
    pid: u32,
}

/// Processor time so far.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    /// The gateway's own processor time.
    pub(super) gateway: Duration,
    /// That of its private PostgreSQL.
    pub(super) database: Duration,
}

impl Site {
    /// Prepares a data directory and the settings, without starting the gateway.
    pub(super) fn new(
        program: PathBuf,
        dir: &Path,
        upstream: SocketAddr,
        processors: Option<Processors>,
    ) -> anyhow::Result<Self> {
        let model = |name: &str| {
            format!(
                "[backends.{name}]\nkind = \"openai\"\napi_key = \"none\"\n\
                 base_url = \"http://{upstream}/{name}/v1\"\n[models.{name}]\nroutes = [\"{name}\"]\n"
            )
        };
        let listen = "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned();
        let config = listen + &["tiny", "large", "slow", "burst"].map(model).concat();
        fs::write(dir.join("easel.toml"), config)?;
        let dir = dir.to_path_buf();
        Ok(Self {
            program,
            dir,
            processors,
        })
    }

    /// Starts the gateway and waits until it is ready.
    pub(super) async fn start(&self) -> anyhow::Result<Gateway> {
        let began = Instant::now();
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = AsyncCommand::from(self.command(&["serve"]));
        if let Some(Processors { all, .. }) = &self.processors {
            // This process is restricted already.
            let mut free = AsyncCommand::new("taskset");
            free.args(["-c", all]).arg(&self.program);
            free.args(command.as_std().get_args());
            command = free;
        }
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = command.kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().context("no output to read")?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        tokio::time::timeout(START_WAIT, reader.read_line(&mut line))
            .await
            .context("the gateway did not start in time")??;
        let Some((_, address)) = line.trim().split_once("http://") else {
            bail!("the gateway did not start, see {}", self.log().display());
        };
        let address = address.parse()?;
        let ready = Load {
            address,
            clients: 1,
            extent: Extent::Times(1),
            requests: vec![wire::request("GET /readyz", "", "text/plain", b"")],
            status: 200,
        };
        ready.run().await?;
        let start = began.elapsed();
        let pid = child.id().context("the gateway has ended")?;
        if self.processors.is_some() {
            // Only now: its database has any processor.
            peers::pin(pid, peers::MEASURED)?;
        }
        Ok(Gateway {
            address,
            start,
            child,
            pid,
        })
    }

    /// Runs a command of the program and returns its output.
    pub(super) fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "`easel {}` failed", args.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Frees the disk space of earlier measurements.
    pub(super) fn clear_objects(&self) -> anyhow::Result<()> {
        for kind in ["images", "uploads"] {
            let folder = self.dir.join("data/objects").join(kind);
            if folder.exists() {
                empty_files(&folder)?;
            }
        }
        Ok(())
    }

    /// The size of the program in bytes.
    pub(super) fn program_bytes(&self) -> anyhow::Result<u64> {
        Ok(fs::metadata(&self.program)?.len())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.dir.join("easel.toml"))
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(args)
            .stdin(Stdio::null())
            .env_remove("DATABASE_URL");
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"EASEL_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }
}

impl Gateway {
    /// Its resident memory in MB, without the database's.
    pub(super) fn resident_mb(&self) -> anyhow::Result<f64> {
        self.memory_mb("VmRSS:")
    }

    /// Its peak resident memory in MB.
    pub(super) fn peak_mb(&self) -> anyhow::Result<f64> {
        self.memory_mb("VmHWM:")
    }

    fn memory_mb(&self, name: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib: f64 = line
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("the system does not report the memory of a process")?
            .parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// The processor time used so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Cpu> {
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path().join("stat");
            // Processes end while they are listed.
            if let Some(stat) = fs::read_to_string(path)
                .ok()
                .as_deref()
                .and_then(Stat::parse)
            {
                processes.insert(stat.pid, stat);
            }
        }
        let time = |pid: u32| {
            processes
                .get(&pid)
                .map_or(Duration::ZERO, |stat| TICK * stat.ticks)
        };
        let is_ours = |stat: &&Stat| {
            let mut parent = stat.parent;
            while let Some(stat) = processes.get(&parent) {
                if parent == self.pid {
                    return true;
                }
                parent = stat.parent;
            }
            false
        };
        Ok(Cpu {
            gateway: time(self.pid),
            database: processes
                .values()
                .filter(is_ours)
                .map(|stat| TICK * stat.ticks)
                .sum(),
        })
    }

    /// Shuts it down and waits until it has ended.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.pid.to_string()).status()?;
        let ended = tokio::time::timeout(END_WAIT, self.child.wait())
            .await
            .context("the gateway did not end in time")??;
        ensure!(ended.success(), "the gateway failed: {ended}");
        Ok(())
    }
}

/// Processor time between two moments, per request.
pub(super) fn cpu_each(before: Cpu, after: Cpu, requests: f64) -> String {
    let each = |before: Duration, after: Duration| {
        number((after.saturating_sub(before)).as_secs_f64() * 1e6 / requests)
    };
    format!(
        "CPU: gateway {} us, database {} us each",
        each(before.gateway, after.gateway),
        each(before.database, after.database)
    )
}

/// Processor time of this process so far.
pub(super) fn own_cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let stat = Stat::parse(&stat).context("the system does not report processor time")?;
    Ok(TICK * stat.ticks)
}

/// Keeps the files, and the directories that a gateway has created over time.
pub(super) fn empty_files(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            empty_files(&entry.path())?;
        } else if entry.metadata()?.len() >= EMPTIED_BYTES_MIN {
            File::create(entry.path())?;
        }
    }
    Ok(())
}

/// A line of `/proc/PID/stat`.
struct Stat {
    pid: u32,
    parent: u32,
    ticks: u32,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The name in between may contain anything, even brackets and spaces.
        let (before, after) = (line.split_once(" (")?.0, line.rsplit_once(") ")?.1);
        let fields: Vec<&str> = after.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
        Some(Self {
            pid: before.parse().ok()?,
            parent: number(1)?,
            ticks: number(11)? + number(12)?,
        })
    }
}
