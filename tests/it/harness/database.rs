//! One private PostgreSQL for the whole run. Each test gets its own database, copied from a migrated template.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use easel::{
    billing::ledger,
    db,
    ids::TaskId,
    private_postgres::PrivatePostgres,
    tasks::{Assignment, Task, store},
};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
    types::Json,
};
use tempfile::TempDir;
use tokio::sync::{Mutex, OnceCell};

use super::fault_proxy::{FaultProxy, Target};

struct Server {
    postgres: PrivatePostgres,
    _dir: TempDir,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();
/// PostgreSQL copies a template for one session at a time.
static COPYING: OnceLock<Mutex<()>> = OnceLock::new();

const TEMPLATE: &str = "easel_template";
/// Followed by the id of the process that owns the directory.
const DIR_PREFIX: &str = "easel-it-";

async fn server() -> &'static Server {
    SERVER
        .get_or_init(|| async {
            remove_leftovers();
            let dir = tempfile::Builder::new()
                .prefix(&format!("{DIR_PREFIX}{}-", std::process::id()))
                .tempdir()
                .unwrap();
            let postgres = PrivatePostgres::start(dir.path()).await.unwrap();
            let mut admin = PgConnection::connect_with(&postgres.options())
                .await
                .unwrap();
            admin
                .execute(AssertSqlSafe(format!("CREATE DATABASE {TEMPLATE}")))
                .await
                .unwrap();
            let pool = PgPool::connect_with(postgres.options().database(TEMPLATE))
                .await
                .unwrap();
            db::migrate(&pool).await.unwrap();
            pool.close().await;
            Server {
                postgres,
                _dir: dir,
            }
        })
        .await
}

/// A static is never dropped, so each run removes what the previous ones left behind.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(DIR_PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be removing it too, or it may belong to another user.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// A database that belongs to one test; dropped with the server.
pub struct TestDatabase {
    name: String,
    options: PgConnectOptions,
}

impl TestDatabase {
    /// Creates a database with the current schema.
    pub async fn create() -> Self {
        Self::copied_from(TEMPLATE).await
    }

    /// An empty database without a schema.
    pub async fn empty() -> Self {
        Self::copied_from("template0").await
    }

    async fn copied_from(template: &str) -> Self {
        let server = server().await;
        let name = format!("test_{}", easel::ids::random_hex());
        let _one_at_a_time = COPYING.get_or_init(Mutex::default).lock().await;
        let mut admin = PgConnection::connect_with(&server.postgres.options())
            .await
            .unwrap();
        let copy = format!("CREATE DATABASE {name} TEMPLATE {template}");
        admin.execute(AssertSqlSafe(copy)).await.unwrap();
        let options = server.postgres.options().database(&name);
        Self { name, options }
    }

    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Starts a proxy in front of the database.
    pub async fn proxy(&self) -> FaultProxy {
        let file = format!(".s.PGSQL.{}", self.options.get_port());
        let socket = self.options.get_socket().unwrap().join(file);
        FaultProxy::start(Target::Unix(socket)).await
    }

    /// Connection options by way of a proxy.
    pub fn options_through(&self, proxy: &FaultProxy) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(proxy.address().port())
            .username(self.options.get_username())
            .database(&self.name)
            .ssl_mode(PgSslMode::Disable)
    }

    /// The URL by way of a proxy.
    pub fn url_through(&self, proxy: &FaultProxy) -> String {
        let (user, address) = (self.options.get_username(), proxy.address());
        format!("postgres://{user}@{address}/{}?sslmode=disable", self.name)
    }

    /// The database as a URL, for processes.
    pub fn url(&self) -> String {
        let socket = self.options.get_socket().unwrap().display().to_string();
        let host: String = url::form_urlencoded::byte_serialize(socket.as_bytes()).collect();
        format!(
            "postgres://{}@localhost/{}?host={host}",
            self.options.get_username(),
            self.name
        )
    }

    /// Creates a role that may do what a gateway does, without being a superuser.
    pub async fn role(&self) -> String {
        let role = format!("role_{}", easel::ids::random_hex());
        self.run(&format!(
            "CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ))
        .await;
        role
    }

    /// The database's URL for a role.
    pub fn url_as(&self, role: &str) -> String {
        let user = format!("postgres://{}@", self.options.get_username());
        self.url().replace(&user, &format!("postgres://{role}@"))
    }

    /// Executes SQL statements.
    pub async fn run(&self, statements: &str) {
        let mut conn = self.connect().await;
        let statements = sqlx::raw_sql(AssertSqlSafe(statements));
        statements.execute(&mut conn).await.unwrap();
    }

    /// Opens a connection of the test's own.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options).await.unwrap()
    }

    /// Waits until every task has ended.
    pub async fn wait_for_all(&self) {
        let mut conn = self.connect().await;
        for _ in 0..3_000 {
            let open = "SELECT EXISTS (SELECT FROM tasks WHERE status IN ('queued', 'running'))";
            let open: bool = sqlx::query_scalar(open).fetch_one(&mut conn).await.unwrap();
            if !open {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("some tasks do not end");
    }

    /// Asserts all invariants, and that nothing is open any more.
    pub async fn assert_invariants(&self) {
        let mut conn = self.connect().await;
        for (promise, broken) in ledger::faults(&mut conn, ledger::Scope::Everything)
            .await
            .unwrap()
        {
            assert_eq!(broken, 0, "broken: {promise}");
        }
        let open: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tasks WHERE status IN ('queued', 'running')")
                .fetch_one(&mut conn)
                .await
                .unwrap();
        assert_eq!(open, 0, "open tasks remain");
        let held: i64 = sqlx::query_scalar("SELECT COALESCE(sum(held), 0)::bigint FROM accounts")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(held, 0, "holds remain");
    }
}

/// The tasks that come next in the queue, if there is enough capacity for all.
pub async fn queue_head(conn: &mut PgConnection, limit: i64) -> Vec<store::Waiting> {
    let queued = store::queued_classes(conn).await.unwrap().into_iter();
    let demand = |(pool, (model, requirements))| store::Demand {
        model,
        requirements,
        pool,
        capacity: u32::MAX,
        least: Duration::ZERO,
    };
    let demands: Vec<_> = (0..).zip(queued).map(demand).collect();
    store::waiting(conn, &demands, limit).await.unwrap()
}

/// Assigns all of these tasks to one route.
pub fn over_route(waiting: Vec<store::Waiting>, route: &str) -> Vec<(TaskId, Assignment)> {
    let assign = |waiting: store::Waiting| {
        let route = Some(route.to_owned());
        (
            waiting.id,
            Assignment {
                route,
                ..waiting.assignment
            },
        )
    };
    waiting.into_iter().map(assign).collect()
}

/// The rows of these tasks, open or ended, as their workers have them.
pub async fn task_rows(conn: &mut PgConnection, ids: &[TaskId]) -> Vec<Task> {
    let rows = sqlx::query("SELECT * FROM tasks WHERE id = ANY($1) ORDER BY id")
        .bind(ids)
        .fetch_all(conn)
        .await
        .unwrap();
    let task = |row: &PgRow| Task {
        id: row.get("id"),
        account_id: row.get("account_id"),
        api_key_id: row.get("api_key_id"),
        status: row.get("status"),
        request: row.get::<Json<_>, _>("request").0,
        unit_price: row.get("unit_price"),
        file_id: row.get("file_id"),
        created_at: row.get("created_at"),
        attempts: row.get("attempts"),
        fence: row.get("fence"),
        left: Duration::from_mins(10),
    };
    rows.iter().map(task).collect()
}
