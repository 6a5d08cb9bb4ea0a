//! The test harness: each test gets its own gateway over a real PostgreSQL, callers, and a check of all invariants at
//! its end.

pub mod account;
pub mod caller;
pub mod database;
pub mod fake_server;
pub mod fault_proxy;
pub mod images;
pub mod loopback;
pub mod process;
pub mod redact;
pub mod s3;
pub mod strace;
pub mod upstream;

use std::{io::Write, sync::Arc, time::Duration};

use easel::{
    app::App,
    clock::Clock,
    config::{Config, Sources},
    http::{self, server},
    images::{Images, sweep},
    shutdown::Shutdown,
    worker::Worker,
};
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use account::Account;
use caller::Caller;
use database::TestDatabase;
use fault_proxy::FaultProxy;

/// A gateway that listens on loopback, in this process.
pub struct TestApp {
    /// The gateway's components, in this process.
    pub app: Images,
    /// Its base URL.
    pub url: String,
    pub database: Arc<TestDatabase>,
    shutdown: Shutdown,
    worker: Worker,
    serving: JoinHandle<()>,
    working: JoinHandle<()>,
    /// Local storage, shared by the replicas of one test.
    dir: Arc<TempDir>,
}

impl TestApp {
    /// Starts a gateway with the default settings.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a gateway with settings, as TOML, that override the defaults.
    pub async fn with(settings: &str) -> Self {
        let database = Arc::new(TestDatabase::create().await);
        Self::over(database, Arc::new(tempfile::tempdir().unwrap()), settings).await
    }

    /// Starts a gateway that reaches its database only through a proxy; the test itself connects directly.
    pub async fn behind(proxy: &FaultProxy, database: TestDatabase, settings: &str) -> Self {
        let options = database.options_through(proxy);
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::reaching(options, Arc::new(database), dir, settings).await
    }

    /// Starts a second gateway behind the same proxy.
    pub async fn replica_behind(&self, proxy: &FaultProxy, settings: &str) -> Self {
        let (database, dir) = (Arc::clone(&self.database), Arc::clone(&self.dir));
        Self::reaching(database.options_through(proxy), database, dir, settings).await
    }

    /// Starts a second gateway on the same database and storage.
    pub async fn replica(&self, settings: &str) -> Self {
        Self::over(Arc::clone(&self.database), Arc::clone(&self.dir), settings).await
    }

    async fn over(database: Arc<TestDatabase>, dir: Arc<TempDir>, settings: &str) -> Self {
        Self::reaching(database.options(), database, dir, settings).await
    }

    async fn reaching(
        options: PgConnectOptions,
        database: Arc<TestDatabase>,
        dir: Arc<TempDir>,
        settings: &str,
    ) -> Self {
        let listener =
            server::listen(server::bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let config = config(&dir, settings, &[("server.listen", &address.to_string())]);
        let shutdown = Shutdown::default();
        let pool = easel::db::open(options, &config.database).await.unwrap();
        let app = App::open(config, pool, Clock::default(), shutdown.clone());
        let (app, to_run) = Images::start(app.await.unwrap());
        let worker = Worker::new(app.clone());
        let working = shutdown.spawn_background(worker.clone().run(to_run));
        let router = http::router(app.clone());
        let (limits, ending) = (app.config.server.clone(), shutdown.clone());
        let serving = shutdown.spawn_background(async move {
            server::serve(listener, router, &limits, &ending).await;
        });
        let url = format!("http://{address}");
        Self {
            app,
            url,
            database,
            shutdown,
            worker,
            serving,
            working,
            dir,
        }
    }

    /// Creates an account with this balance, and a caller with its key.
    pub async fn caller(&self, balance: &str) -> Caller {
        self.create(Account::with(balance)).await
    }

    /// Creates an account, and a caller with its key.
    pub async fn create(&self, account: Account) -> Caller {
        account.create(&self.database, &self.url).await
    }

    /// Begins a shutdown; [`finish`](Self::finish) must still follow.
    pub fn begin_shutdown(&self) {
        self.shutdown.begin();
    }

    /// Ends like a killed process: nothing is drained, no lease is given up.
    pub fn kill(self) -> (Arc<TestDatabase>, Arc<TempDir>) {
        self.working.abort();
        self.serving.abort();
        (Arc::clone(&self.database), Arc::clone(&self.dir))
    }

    /// Deletes what has expired, as the hourly sweep does.
    pub async fn sweep(&self) -> u64 {
        sweep::sweep(&self.app).await.unwrap()
    }

    /// Shuts down in order and checks all invariants.
    pub async fn finish(self) {
        self.database.wait_for_all().await;
        self.shutdown.begin();
        let serving = async { self.serving.await.unwrap() };
        self.worker.drain(serving, Duration::from_secs(30)).await;
        self.working.abort();
        self.database.assert_invariants().await;
    }
}

/// The configuration of a test.
pub fn config(dir: &TempDir, settings: &str, overrides: &[(&str, &str)]) -> Config {
    let file = dir
        .path()
        .join(format!("{}.toml", easel::ids::random_base62(8)));
    std::fs::write(&file, settings).unwrap();
    let mut all = vec![
        ("data_dir".to_owned(), dir.path().display().to_string()),
        ("database.connections_max".to_owned(), "8".to_owned()),
    ];
    all.extend(
        overrides
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
    );
    let sources = Sources {
        file: Some(file),
        environment: Vec::new(),
        overrides: all,
    };
    Config::load(&sources).unwrap_or_else(|error| panic!("{error}"))
}

/// An external program that some tests need, named by this variable. If it is missing, the test is skipped with a
/// message; under `tests/run` it fails.
pub fn tool(variable: &str, what: &str) -> Option<String> {
    let found = std::env::var(variable).ok();
    if found.is_none() {
        assert!(
            std::env::var_os("IT_REQUIRE_ALL").is_none(),
            "{what} needs {variable}"
        );
        say(&format!(
            "skipped: {what} needs {variable}, which tests/run sets"
        ));
    }
    found
}

/// Prints a line past the output capture of passing tests, to show skipped tests and measurements.
pub fn say(line: &str) {
    std::io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}
