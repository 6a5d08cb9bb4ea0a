//! Data directories: leftovers in them, contents that are not ours, and who may use them.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use easel::private_postgres::PrivatePostgres;

use super::{another_process, count, data_dir, note, pid_file, wait_for};
use crate::harness::say;

const ANY_USER: u32 = 65_534;

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
