//! The built program as a separate process, which can be killed, paused and shut down.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use super::database::TestDatabase;

/// Generous, because other tests keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// How to start a process.
#[derive(Clone)]
pub struct Setup {
    /// The directory of its configuration and data.
    pub dir: Arc<TempDir>,
    settings: String,
    environment: Vec<(String, String)>,
    /// A program and its arguments that run the gateway as their child.
    wrapper: Vec<String>,
}

impl Setup {
    /// Uses a private PostgreSQL in a new data directory.
    pub fn new(settings: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("easel-p").tempdir();
        Self {
            dir: Arc::new(dir.unwrap()),
            settings: settings.to_owned(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// Uses an existing database.
    pub fn on(database: &TestDatabase, settings: &str) -> Self {
        Self::new(settings).env("DATABASE_URL", &database.url())
    }

    /// The same data directory and environment with other settings.
    pub fn with(&self, settings: &str) -> Self {
        let settings = settings.to_owned();
        Self {
            settings,
            ..self.clone()
        }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets another program run the gateway, as `strace` does.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The program with its global flags, and an environment that inherits nothing from this process.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Always the same file: a running gateway may be told to reload it.
        let file = self.dir.path().join("easel.toml");
        std::fs::write(&file, &self.settings).unwrap();
        let wrapper = self.wrapper.iter().map(String::as_str);
        let mut words = wrapper.chain([env!("CARGO_BIN_EXE_easel")]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command.env_clear();
        for name in ["PATH", "PG_BIN", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .envs(self.environment.iter().cloned())
            .current_dir(self.dir.path())
            .arg("--config")
            .arg(file)
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Starts a gateway on a free port and returns once it is ready.
    pub fn serve(&self) -> Process {
        let process = self.spawn(&["serve", "--listen", "127.0.0.1:0"]);
        process.wait_ready();
        process
    }

    /// Starts a command without waiting for it.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        let mut command = self.command(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Process {
            stdout: Said::by(child.stdout.take().unwrap()),
            stderr: Said::by(child.stderr.take().unwrap()),
            started: Instant::now(),
            child: Mutex::new(child),
            data_dir: self.data_dir(),
            _dir: Arc::clone(&self.dir),
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Its standard output; panics unless it succeeded.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Its standard error; panics unless it exited with code 1.
    #[track_caller]
    pub fn bad(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.stderr
    }
}

/// The output of a process so far, and the thread that reads it to its end.
struct Said(Arc<Mutex<String>>, Mutex<Option<JoinHandle<()>>>);

impl Said {
    fn by(pipe: impl Read + Send + 'static) -> Self {
        let text: Arc<Mutex<String>> = Arc::default();
        let said = Arc::clone(&text);
        let listening = thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                said.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self(text, Mutex::new(Some(listening)))
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    /// Reads the rest of the output, once the process has ended.
    fn finish(&self) {
        if let Some(listening) = self.1.lock().unwrap().take() {
            listening.join().unwrap();
        }
    }
}

/// A running process; killed when it is dropped.
pub struct Process {
    child: Mutex<Child>,
    stdout: Said,
    stderr: Said,
    started: Instant,
    data_dir: PathBuf,
    _dir: Arc<TempDir>,
}

impl Process {
    /// Waits for the line that reports readiness; returns the time since the start.
    pub fn wait_ready(&self) -> Duration {
        self.wait_said("Easel is ready at ");
        self.started.elapsed()
    }

    /// Waits until its output contains `text`, and returns the output.
    pub fn wait_said(&self, text: &str) -> String {
        self.wait_until(text, || self.stdout().contains(text));
        self.stdout()
    }

    /// Waits until its log contains `text`.
    pub fn wait_logged(&self, text: &str) {
        self.wait_until(text, || self.stderr().contains(text));
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// The URL that it has printed.
    pub fn url(&self) -> String {
        let said = self.stdout();
        let (_, rest) = said.split_once("Easel is ready at ").unwrap();
        rest.lines().next().unwrap().to_owned()
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The complete log of a process that has ended.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal: `TERM`, `KILL`, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        signal(name, self.child.lock().unwrap().id());
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) {
        self.signal("KILL");
        self.wait_end();
    }

    /// Shuts the process down, which must exit successfully.
    pub fn end(&self) {
        self.signal("TERM");
        let status = self.wait_end();
        assert!(status.success(), "{status}: {}", self.stderr());
    }

    pub fn has_ended(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn wait_end(&self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.lock().unwrap().try_wait().unwrap() {
                self.stdout.finish();
                self.stderr.finish();
                return status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "it is still running: {}",
                self.stderr()
            );
            thread::sleep(POLL);
        }
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            let ended = self.has_ended() && !is_so();
            assert!(
                !ended && began.elapsed() < PATIENCE,
                "no {what:?} in {}{}",
                self.stdout(),
                self.stderr()
            );
            thread::sleep(POLL);
        }
    }
}

/// A killed gateway's PostgreSQL ends by itself; its directory must outlive it.
impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let began = Instant::now();
        while let Some(pid) = postmaster(&self.data_dir)
            && Path::new(&format!("/proc/{pid}")).exists()
            && began.elapsed() < PATIENCE
        {
            thread::sleep(POLL);
        }
    }
}

/// The process id of the private PostgreSQL in a data directory.
pub fn postmaster(data_dir: &Path) -> Option<u32> {
    let file = std::fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    file.lines().next()?.trim().parse().ok()
}

/// Sends a signal to a process, by name.
pub fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("kill");
    let status = kill.arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

impl TestDatabase {
    /// The single number that a query returns.
    pub async fn number(&self, query: &str) -> i64 {
        let mut conn = self.connect().await;
        sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut conn)
            .await
            .unwrap()
    }

    /// Repeats the query until it returns `expected`.
    pub async fn wait_for(&self, query: &str, expected: i64) {
        let began = Instant::now();
        let mut conn = self.connect().await;
        loop {
            let answer: i64 = sqlx::query_scalar(AssertSqlSafe(query))
                .fetch_one(&mut conn)
                .await
                .unwrap();
            if answer == expected {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{query}: {answer}, not {expected}"
            );
            tokio::time::sleep(POLL).await;
        }
    }
}
