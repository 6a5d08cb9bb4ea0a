//! The private server with real programs: what it keeps, whom it refuses, and what it survives. Some tests need a
//! separate process: they run this binary again as `as_another_process`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use easel::private_postgres::{PrivatePostgres, PrivatePostgresError};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::harness::say;

const PART: &str = "IT_PRIVATE_POSTGRES_PART";
const DATA_DIR: &str = "IT_PRIVATE_POSTGRES_DATA_DIR";
const WAIT: Duration = Duration::from_secs(20);
const ANY_USER: u32 = 65_534;

/// Below /tmp, whose path is short and which every user can enter.
fn data_dir() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("easel-pg-")
        .tempdir_in("/tmp")
        .unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

async fn connect(server: &PrivatePostgres) -> PgConnection {
    PgConnection::connect_with(&server.options()).await.unwrap()
}

async fn count(server: &PrivatePostgres) -> i64 {
    let mut connection = connect(server).await;
    let count = sqlx::query_scalar("SELECT count(*) FROM notes")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    count
}

/// Inserts a row into a table, which is created if it is missing.
async fn note(server: &PrivatePostgres) {
    let mut connection = connect(server).await;
    for statement in [
        "CREATE TABLE IF NOT EXISTS notes (id bigserial PRIMARY KEY)",
        "INSERT INTO notes DEFAULT VALUES",
    ] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
}

fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("postgres/postmaster.pid")
}

fn server_pid(data_dir: &Path) -> String {
    let text = fs::read_to_string(pid_file(data_dir)).unwrap();
    text.lines().next().unwrap().to_owned()
}

fn kill_hard(pid: &str) {
    assert!(
        Command::new("kill")
            .args(["-9", pid])
            .status()
            .unwrap()
            .success()
    );
}

/// This binary again, where it plays one of the parts of `as_another_process`.
fn another_process(part: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "private_postgres::as_another_process",
            "--nocapture",
        ])
        .env(PART, part)
        .env(DATA_DIR, data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

async fn wait_for(path: &Path, child: &mut Child) {
    let deadline = Instant::now() + WAIT;
    while !path.exists() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the other process ended early: {ended:?}");
        assert!(Instant::now() < deadline, "{} never came", path.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Not a test itself: the entry point of processes that other tests start.
#[tokio::test]
async fn as_another_process() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let data_dir = PathBuf::from(std::env::var_os(DATA_DIR).unwrap());
    match part.as_str() {
        "serve_until_killed" => {
            let server = PrivatePostgres::start(&data_dir).await.unwrap();
            note(&server).await;
            fs::write(data_dir.join("noted"), "").unwrap();
            server.ended().await;
        }
        "note_and_stop" => {
            let server = PrivatePostgres::start(&data_dir).await.unwrap();
            note(&server).await;
            assert_eq!(count(&server).await, 1);
            server.stop().await.unwrap();
        }
        "expect_not_writable" => {
            let error = PrivatePostgres::start(&data_dir).await.unwrap_err();
            let said = error.to_string();
            assert!(said.contains(data_dir.to_str().unwrap()), "{said}");
            assert!(said.contains("--data-dir"), "{said}");
        }
        other => panic!("no such part: {other}"),
    }
}

#[tokio::test]
async fn data_survives_a_stop_and_starts_are_quick() {
    let dir = data_dir();
    let began = Instant::now();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    say(&format!("first start: {:?}", began.elapsed()));
    note(&server).await;
    server.stop().await.unwrap();
    assert!(!pid_file(dir.path()).exists());

    let began = Instant::now();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    say(&format!("later start: {:?}", began.elapsed()));
    assert_eq!(count(&server).await, 1);
    let mut connection = connect(&server).await;
    for (setting, expected) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("jit", "off"),
        ("max_connections", "120"),
        ("shared_buffers", "128MB"),
        ("max_wal_size", "1GB"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
    ] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(value, expected, "{setting}");
    }
    connection.close().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_gateway_is_refused_at_once_and_the_first_unharmed() {
    let dir = data_dir();
    let first = PrivatePostgres::start(dir.path()).await.unwrap();
    note(&first).await;

    let began = Instant::now();
    let error = PrivatePostgres::start(dir.path()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(matches!(error, PrivatePostgresError::AlreadyServed { .. }));
    let said = error.to_string();
    assert!(said.contains(dir.path().to_str().unwrap()), "{said}");
    assert!(!said.contains('\n'), "{said}");

    assert_eq!(count(&first).await, 1);
    first.stop().await.unwrap();
}

#[tokio::test]
async fn a_command_uses_the_gateways_server_and_leaves_it_running() {
    let dir = data_dir();
    let gateway = PrivatePostgres::start(dir.path()).await.unwrap();
    let pid = server_pid(dir.path());
    let command = PrivatePostgres::attach_or_start(dir.path()).await.unwrap();
    note(&command).await;
    let never = tokio::time::timeout(Duration::from_millis(50), command.ended()).await;
    assert!(never.is_err(), "another's server does not end for a guest");
    command.stop().await.unwrap();

    assert_eq!(count(&gateway).await, 1);
    assert_eq!(server_pid(dir.path()), pid);
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn commands_alone_share_a_server_and_clean_up() {
    let dir = data_dir();
    // Both start from nothing at once: one creates the cluster, the other waits for it.
    let (one, two) = tokio::join!(
        PrivatePostgres::attach_or_start(dir.path()),
        PrivatePostgres::attach_or_start(dir.path()),
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    note(&one).await;
    note(&two).await;

    // The owner, whichever it is, waits for the other; the other stops at once.
    let (one, two) = tokio::join!(one.stop(), two.stop());
    one.unwrap();
    two.unwrap();
    assert!(!pid_file(dir.path()).exists());

    let gateway = PrivatePostgres::start(dir.path()).await.unwrap();
    assert_eq!(count(&gateway).await, 2);
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn a_gateway_waits_for_a_command() {
    let dir = data_dir();
    let command = PrivatePostgres::attach_or_start(dir.path()).await.unwrap();
    note(&command).await;
    let (gateway, stopped) = tokio::join!(PrivatePostgres::start(dir.path()), command.stop());
    stopped.unwrap();
    let gateway = gateway.unwrap();
    assert_eq!(count(&gateway).await, 1);
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_gateway_takes_its_server_along_and_loses_nothing() {
    let dir = data_dir();
    let mut gateway = another_process("serve_until_killed", dir.path())
        .spawn()
        .unwrap();
    wait_for(&dir.path().join("noted"), &mut gateway).await;
    let pid = server_pid(dir.path());
    gateway.kill().unwrap();
    gateway.wait().unwrap();

    let next = PrivatePostgres::start(dir.path()).await.unwrap();
    assert_ne!(server_pid(dir.path()), pid);
    assert_eq!(count(&next).await, 1);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_noticed_and_recovered() {
    let dir = data_dir();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    note(&server).await;
    kill_hard(&server_pid(dir.path()));
    tokio::time::timeout(WAIT, server.ended()).await.unwrap();
    drop(server);

    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    assert_eq!(count(&server).await, 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_stops() {
    let dir = data_dir();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    drop(server);
    let deadline = Instant::now() + WAIT;
    while pid_file(dir.path()).exists() {
        assert!(Instant::now() < deadline, "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn leftovers_of_other_processes_are_harmless() {
    let dir = data_dir();
    let cluster = dir.path().join("postgres");
    // A first start that was interrupted.
    fs::create_dir_all(cluster.join("base")).unwrap();
    fs::write(cluster.join("PG_VERSION"), "15\n").unwrap();
    fs::write(dir.path().join("postgres.unfinished"), "").unwrap();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    note(&server).await;
    server.stop().await.unwrap();
    assert!(!dir.path().join("postgres.unfinished").exists());

    // A pid that belongs to another program by now, and a log that has grown.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let left = format!(
        "{}\n{}\n1\n5432\n.\n\n 1 2\nready   \n",
        other.id(),
        cluster.display()
    );
    fs::write(pid_file(dir.path()), &left).unwrap();
    fs::write(cluster.join(".s.PGSQL.5432.lock"), &left).unwrap();
    let log = fs::File::create(cluster.join("server.log")).unwrap();
    log.set_len(11 * 1024 * 1024).unwrap();
    let server = PrivatePostgres::start(dir.path()).await.unwrap();
    assert_eq!(count(&server).await, 1);
    assert!(
        other.try_wait().unwrap().is_none(),
        "the other program was hit"
    );
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(cluster.join("server.log").metadata().unwrap().len() < 1024 * 1024);
    assert!(cluster.join("server.log.old").exists());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn too_long_a_path_says_to_choose_a_shorter_one() {
    let dir = data_dir();
    let long = dir.path().join("a".repeat(120));
    let said = PrivatePostgres::start(&long).await.unwrap_err().to_string();
    assert!(said.contains("shorter"), "{said}");
    assert!(said.contains("--data-dir"), "{said}");
    assert!(!said.contains('\n'), "{said}");
}

#[tokio::test]
async fn data_of_another_major_version_are_left_alone() {
    let dir = data_dir();
    let version = dir.path().join("postgres/PG_VERSION");
    fs::create_dir_all(version.parent().unwrap()).unwrap();
    fs::write(&version, "8\n").unwrap();
    let said = PrivatePostgres::start(dir.path())
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("PostgreSQL 8"), "{said}");
    assert_eq!(fs::read_to_string(&version).unwrap(), "8\n");
}

#[tokio::test]
async fn a_full_folder_that_is_no_database_is_left_alone() {
    let dir = data_dir();
    let treasure = dir.path().join("postgres/treasure");
    fs::create_dir_all(treasure.parent().unwrap()).unwrap();
    fs::write(&treasure, "gold").unwrap();
    for _attempt in 0..2 {
        let said = PrivatePostgres::start(dir.path())
            .await
            .unwrap_err()
            .to_string();
        assert!(said.contains("not empty"), "{said}");
        assert!(!said.contains('\n'), "{said}");
        assert_eq!(fs::read_to_string(&treasure).unwrap(), "gold");
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim() == "0"
}

#[tokio::test]
async fn root_may_keep_data_where_only_root_has_access() {
    if !is_root() || !cfg!(target_os = "linux") {
        say("skipped: applies to root on Linux only");
        return;
    }
    let home = data_dir();
    fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).unwrap();
    let dir = home.path().join("data");
    for notes in 1..=2 {
        let server = PrivatePostgres::start(&dir).await.unwrap();
        note(&server).await;
        assert_eq!(count(&server).await, notes);
        server.stop().await.unwrap();
    }
    let mut gateway = another_process("serve_until_killed", &dir).spawn().unwrap();
    wait_for(&dir.join("noted"), &mut gateway).await;
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    let next = PrivatePostgres::start(&dir).await.unwrap();
    assert_eq!(count(&next).await, 3);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn an_ordinary_user_needs_no_root() {
    if !is_root() {
        say("skipped: the other tests already run as an ordinary user");
        return;
    }
    let dir = data_dir();
    // That user cannot read root's build directory.
    let program = dir.path().join("it");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let play = |part: &str, data_dir: &Path| {
        let template = another_process(part, data_dir);
        let mut command = Command::new(&program);
        command
            .args(template.get_args())
            .uid(ANY_USER)
            .gid(ANY_USER)
            .current_dir("/");
        for (key, value) in template.get_envs() {
            command.env(key, value.unwrap());
        }
        command.output().unwrap()
    };

    let refused = dir.path().join("refused");
    fs::create_dir(&refused).unwrap();
    let output = play("expect_not_writable", &refused);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );

    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(ANY_USER), Some(ANY_USER)).unwrap();
    let output = play("note_and_stop", &own);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("1 passed"), "the part was not played: {said}");
}
