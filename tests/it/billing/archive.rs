//! `easel archive`: what is exported, what stays, and that the ledger still adds up.

use std::fs;

use easel::{
    billing::ledger::{self, Scope},
    clock::Clock,
};
use sqlx::{Executor, PgConnection};

use crate::harness::{database::TestDatabase, process::Setup};

/// An account with entries and tasks of three months. One task was accepted in January and ended in February.
const PAST: &str = "
    SELECT add_month('2026-01-01Z'), add_month('2026-02-01Z'), add_month('2026-03-01Z');
    INSERT INTO accounts (id, name, balance, spent) VALUES
        ('018f0000-0000-7000-8000-00000000000a', 'studio', 9200000, 800000),
        ('018f0000-0000-7000-8000-00000000000c', 'new', 3000000, 0);
    INSERT INTO entries (account_id, kind, balance_change, created_at) VALUES
        ('018f0000-0000-7000-8000-00000000000a', 'top_up', 10000000, '2026-01-02Z'),
        ('018f0000-0000-7000-8000-00000000000c', 'top_up', 3000000, '2026-03-02Z');
    CREATE FUNCTION ended(accepted timestamptz, ended timestamptz) RETURNS void LANGUAGE sql AS $$
        INSERT INTO task_history (id, account_id, api_key_id, status, model, quality, resolution, ratio, n, unit_price,
            file_id, fingerprint, created_at, ended_at, cost, images, request)
        VALUES (uuid_of(accepted), '018f0000-0000-7000-8000-00000000000a', gen_random_uuid(), 'completed', 'gpt-image-2',
            'medium', '1k', '1:1', 1, 200000, gen_random_uuid(), 'f', accepted, ended, 200000, '[{}]',
            '{\"prompt\": \"a \\\"bridge\\\", at night\"}');
        INSERT INTO entries (account_id, task_id, kind, balance_change, created_at)
        VALUES ('018f0000-0000-7000-8000-00000000000a', uuid_of(accepted), 'capture', -200000, ended)
    $$;
    SELECT ended('2026-01-10Z', '2026-01-10 00:00:20Z'), ended('2026-01-31 23:59:50Z', '2026-02-01 00:00:10Z'),
        ended('2026-02-10Z', '2026-02-10 00:00:20Z'), ended('2026-03-10Z', '2026-03-10 00:00:20Z')";

async fn assert_ledger_holds(conn: &mut PgConnection) {
    for scope in [Scope::Unclosed, Scope::Everything] {
        for (promise, broken) in ledger::faults(conn, scope).await.unwrap() {
            assert_eq!(broken, 0, "broken, {scope:?}: {promise}");
        }
    }
}

#[tokio::test]
async fn old_months_are_exported_and_dropped_and_the_ledger_adds_up() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    conn.execute(PAST).await.unwrap();
    assert_ledger_holds(&mut conn).await;
    let setup = Setup::on(&database, "");
    let dir = setup.dir.path().join("backup");
    let to = dir.to_str().unwrap();
    let archive = |before: &str| setup.run(&["archive", "--before", before, "--to", to]);

    assert_eq!(archive("2026-01").good(), "nothing is that old\n");
    insta::assert_snapshot!(archive("2026-02").good(), @"archived 2026_01: 2 tasks, 2 entries");
    assert_ledger_holds(&mut conn).await;
    insta::assert_snapshot!(archive("2026-03").good(), @"archived 2026_02: 1 tasks, 2 entries");
    assert_ledger_holds(&mut conn).await;

    let tasks = fs::read_to_string(dir.join("tasks-2026_01.csv")).unwrap();
    let mut lines = tasks.lines();
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("id,account_id,api_key_id,status")
    );
    assert_eq!(lines.filter(|line| line.contains("completed")).count(), 2);
    assert!(
        tasks.contains(r#""{""prompt"": ""a \""bridge\"", at night""}""#),
        "{tasks}"
    );
    let entries = fs::read_to_string(dir.join("entries-2026_02.csv")).unwrap();
    assert_eq!(entries.matches("capture,-200000").count(), 2);
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(left, 1);
    let shown = setup.run(&["accounts", "show", "studio"]).good();
    assert!(shown.contains("9.20"), "{shown}");
    // What is kept is still checked.
    conn.execute("DELETE FROM entries WHERE kind = 'capture'")
        .await
        .unwrap();
    let faults = ledger::faults(&mut conn, Scope::Unclosed).await.unwrap();
    assert_eq!(faults.iter().filter(|(_, broken)| *broken > 0).count(), 2);
}

#[tokio::test]
async fn nothing_is_archived_from_a_broken_ledger_or_over_a_file() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    conn.execute(PAST).await.unwrap();
    let setup = Setup::on(&database, "");
    let dir = setup.dir.path().join("backup");
    let archive =
        |before: &str| setup.run(&["archive", "--before", before, "--to", dir.to_str().unwrap()]);
    let next = Clock::default().now() + chrono::TimeDelta::days(40);
    let early = archive(&next.format("%Y-%m").to_string()).bad();
    assert!(
        early.contains("a month can be archived a day after its end: --before must be"),
        "{early}"
    );
    let unclear = archive("January");
    assert_eq!(unclear.code, Some(2));
    assert!(
        unclear.stderr.contains("expected a month like 2026-01"),
        "{unclear:?}"
    );

    conn.execute("UPDATE accounts SET balance = balance + 1")
        .await
        .unwrap();
    let broken = archive("2026-03").bad();
    assert!(
        broken.contains("nothing was archived, because the ledger is broken 2 times"),
        "{broken}"
    );
    assert!(!dir.exists());

    conn.execute("UPDATE accounts SET balance = balance - 1")
        .await
        .unwrap();
    fs::create_dir(&dir).unwrap();
    // A file that is there is never replaced.
    fs::write(dir.join("entries-2026_01.csv"), "precious").unwrap();
    let exists = archive("2026-03").bad();
    assert!(
        exists.contains("entries-2026_01.csv exists: move it away"),
        "{exists}"
    );
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(left, 4);
}

#[tokio::test]
async fn the_doctor_closes_months_and_reads_them_again_only_if_told_to() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    conn.execute(PAST).await.unwrap();
    let setup = Setup::on(&database, "");
    setup.serve().end();
    setup.run(&["doctor"]).good();
    let closed: i64 = sqlx::query_scalar("SELECT count(*) FROM closed_partitions")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(closed, 3);
    assert_ledger_holds(&mut conn).await;

    // A month that is closed: only all of the ledger shows it.
    let change = async |conn: &mut PgConnection, micros: i64| {
        sqlx::query(
            "UPDATE entries SET balance_change = $1 WHERE created_at = '2026-01-10 00:00:20Z'",
        )
        .bind(micros)
        .execute(conn)
        .await
        .unwrap();
    };
    change(&mut conn, -300_000).await;
    setup.run(&["doctor"]).good();
    let all = setup.run(&["doctor", "--all"]);
    assert_eq!(all.code, Some(1), "{all:?}");
    assert!(
        all.stdout
            .contains("broken 1 times: the entries of an account add up"),
        "{all:?}"
    );
    change(&mut conn, -200_000).await;
    setup.run(&["doctor", "--all"]).good();

    // A closed month can be archived, too.
    let to = setup.dir.path().join("backup");
    let archived = setup.run(&[
        "archive",
        "--before",
        "2026-03",
        "--to",
        to.to_str().unwrap(),
    ]);
    insta::assert_snapshot!(archived.good(), @r"
    archived 2026_01: 2 tasks, 2 entries
    archived 2026_02: 1 tasks, 2 entries
    ");
    assert_ledger_holds(&mut conn).await;
}

#[tokio::test]
async fn a_month_that_is_being_read_is_dropped_later_and_keeps_nobody_waiting() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    conn.execute(PAST).await.unwrap();
    let mut reader = database.connect().await;
    reader
        .execute("BEGIN; SELECT count(*) FROM entries")
        .await
        .unwrap();
    let setup = Setup::on(&database, "");
    let to = setup.dir.path().join("backup");
    let args = [
        "archive",
        "--before",
        "2026-02",
        "--to",
        to.to_str().unwrap(),
    ]
    .map(str::to_owned);
    let archive =
        tokio::task::spawn_blocking(move || setup.run(&args.each_ref().map(String::as_str)));
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    database.wait_for(waits, 1).await;
    // Others get the lock between two tries.
    conn.execute("SET lock_timeout = '2s'").await.unwrap();
    conn.execute("SELECT count(*) FROM entries").await.unwrap();
    reader.execute("COMMIT").await.unwrap();
    insta::assert_snapshot!(archive.await.unwrap().good(), @"archived 2026_01: 2 tasks, 2 entries");
    assert_ledger_holds(&mut conn).await;
}
