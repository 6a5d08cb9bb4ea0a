//! The gateway under test: its own process on a data directory of its own, with the memory and the
//! processor time it takes.

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
    report::number,
    wire,
};

const START_WAIT: Duration = Duration::from_mins(1);
const END_WAIT: Duration = Duration::from_mins(1);
/// Smaller files are let be.
const EMPTIED_BYTES_MIN: u64 = 64 * 1024;
/// What Linux counts processor time in.
const TICK: Duration = Duration::from_millis(10);

/// Where a gateway is set up, and with what.
pub(super) struct Site {
    program: PathBuf,
    dir: PathBuf,
}

/// A running gateway.
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    /// From its start until it said that it is ready.
    pub(super) start: Duration,
    child: Child,
    pid: u32,
}

/// Processor time so far.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    pub(super) gateway: Duration,
    pub(super) database: Duration,
}

impl Site {
    pub(super) fn new(program: PathBuf, dir: &Path, upstream: SocketAddr) -> anyhow::Result<Self> {
        let model = |name: &str| {
            format!(
                "[backends.{name}]\nkind = \"openai\"\napi_key = \"none\"\n\
                 base_url = \"http://{upstream}/{name}/v1\"\n[models.{name}]\nroutes = [\"{name}\"]\n"
            )
        };
        let listen = "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned();
        let config = listen + &["tiny", "large", "slow"].map(model).concat();
        fs::write(dir.join("easel.toml"), config)?;
        let dir = dir.to_path_buf();
        Ok(Self { program, dir })
    }

    /// Starts the gateway and waits until it is ready.
    pub(super) async fn start(&self) -> anyhow::Result<Gateway> {
        let began = Instant::now();
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = AsyncCommand::from(self.command(&["serve"]));
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
        Ok(Gateway {
            address,
            start,
            child,
            pid,
        })
    }

    /// What a command of the program answers.
    pub(super) fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "`easel {}` failed", args.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Gives the disk back what earlier measurements stored.
    pub(super) fn clear_objects(&self) -> anyhow::Result<()> {
        for kind in ["images", "uploads"] {
            let folder = self.dir.join("data/objects").join(kind);
            if folder.exists() {
                empty_files(&folder)?;
            }
        }
        Ok(())
    }

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
    /// Its own resident memory in MB, without the database's.
    pub(super) fn resident_mb(&self) -> anyhow::Result<f64> {
        self.memory_mb("VmRSS:")
    }

    /// The most that was ever resident, in MB.
    pub(super) fn peak_mb(&self) -> anyhow::Result<f64> {
        self.memory_mb("VmHWM:")
    }

    fn memory_mb(&self, name: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib: f64 = line
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("the system does not say how much memory a process has")?
            .parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

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

    /// Tells it to end, and waits until it has.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.pid.to_string()).status()?;
        let ended = tokio::time::timeout(END_WAIT, self.child.wait())
            .await
            .context("the gateway did not end in time")??;
        ensure!(ended.success(), "the gateway ended badly: {ended}");
        Ok(())
    }
}

/// Processor time between two moments, by request.
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

/// Leaves the files, and the folders that a gateway which has run for a while has made.
fn empty_files(folder: &Path) -> anyhow::Result<()> {
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
        // The name between may hold anything, brackets and spaces included.
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
