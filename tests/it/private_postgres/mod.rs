//! The private server with real programs: what it keeps, whom it refuses, and what it survives. Some tests need a
//! separate process: they run this binary again as `as_another_process`.

mod directories;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
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
