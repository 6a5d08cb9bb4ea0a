//! What the database itself refuses to store, and what the audit of the ledger finds after manual changes.

use easel::{
    billing::ledger,
    ids::{self, AccountId, OfAccount, OfTask, TaskId},
};
use proptest::prelude::*;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::runtime;

use crate::harness::{TestApp, database::TestDatabase, upstream::Upstream};

async fn broken(conn: &mut PgConnection) -> Vec<&'static str> {
    let faults = ledger::faults(conn).await.unwrap();
    let broken = faults.into_iter().filter(|(_, count)| *count > 0);
    broken.map(|(promise, _)| promise).collect()
}

const SUMS: &str = "the entries of an account add up to its balance, holds and spending";
const HOLDS: &str = "a task has one hold, of its whole price";
const SETTLEMENTS: &str = "an open task keeps its hold, and one settlement ends it with the task";
const CAPTURES: &str =
    "what is captured is the price of the images delivered, nothing for a failed task";

#[tokio::test]
async fn the_audit_finds_manual_changes() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("10.00").await;
    let body = json!({"model": "gpt-image-2", "prompt": "a ledger", "n": 2});
    let result = caller.post("/v1/images/generations", &body).await;
    assert_eq!(result.status, 200, "{result:?}");
    let mut conn = app.database.connect().await;
    assert!(broken(&mut conn).await.is_empty());

    for (tampering, found) in [
        ("UPDATE accounts SET balance = balance + 1", &[SUMS][..]),
        ("UPDATE accounts SET held = 1", &[SUMS]),
        ("UPDATE accounts SET spent = spent - 1", &[SUMS]),
        ("DELETE FROM entries WHERE kind = 'top_up'", &[SUMS]),
        (
            "DELETE FROM entries WHERE kind = 'capture'",
            &[SUMS, SETTLEMENTS, CAPTURES],
        ),
        (
            "DELETE FROM entries WHERE kind = 'hold'",
            &[SUMS, HOLDS, SETTLEMENTS],
        ),
        ("DELETE FROM tasks", &[HOLDS, SETTLEMENTS, CAPTURES]),
        ("UPDATE tasks SET unit_price = 300000", &[HOLDS, CAPTURES]),
        ("UPDATE tasks SET cost = cost - 1", &[CAPTURES]),
        ("UPDATE tasks SET images = images - 1", &[CAPTURES]),
        (
            "UPDATE tasks SET status = 'failed', cost = 0, images = NULL, failure = '{}'",
            &[CAPTURES],
        ),
        (
            "UPDATE tasks SET status = 'queued', ended_at = NULL, cost = NULL, images = NULL",
            &[SETTLEMENTS, CAPTURES],
        ),
        (
            "UPDATE entries SET held_change = held_change - 1 WHERE kind = 'capture'",
            &[SUMS, SETTLEMENTS],
        ),
    ] {
        let mut tx = conn.begin().await.unwrap();
        let done = sqlx::query(tampering).execute(&mut *tx).await.unwrap();
        assert!(done.rows_affected() > 0, "{tampering}");
        assert_eq!(broken(&mut tx).await, found, "{tampering}");
        tx.rollback().await.unwrap();
    }
    app.finish().await;
}

#[tokio::test]
async fn the_audit_finds_an_entry_on_the_wrong_account() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let (caller, other) = (app.caller("1.00").await, app.caller("1.00").await);
    assert_eq!(caller.generate("a mix-up").await.status, 200);
    let mut conn = app.database.connect().await;
    let mut tx = conn.begin().await.unwrap();
    sqlx::query("UPDATE entries SET account_id = $1 WHERE kind <> 'top_up'")
        .bind(other.account_id)
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(broken(&mut tx).await, [SUMS, HOLDS, SETTLEMENTS, CAPTURES]);
    tx.rollback().await.unwrap();
    app.finish().await;
}

#[derive(Clone, Debug)]
struct EntryRow {
    kind: &'static str,
    of_task: bool,
    balance: i64,
    held: i64,
}

impl EntryRow {
    fn is_sound(&self) -> bool {
        match self.kind {
            "top_up" => !self.of_task && self.held == 0,
            "hold" => self.of_task && self.balance == 0 && self.held >= 0,
            "capture" => self.of_task && self.balance <= 0 && self.held <= self.balance,
            "release" => self.of_task && self.balance == 0 && self.held <= 0,
            _ => false,
        }
    }
}

/// Small numbers often, so that they collide; large ones too.
fn amount() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -2_i64..=2, 1 => -1_000_000_000_000_i64..1_000_000_000_000]
}

fn entry_row() -> impl Strategy<Value = EntryRow> {
    let kinds = ["top_up", "hold", "capture", "release", "refund"];
    let fields = (
        prop::sample::select(kinds.to_vec()),
        any::<bool>(),
        amount(),
        amount(),
    );
    fields.prop_map(|(kind, of_task, balance, held)| EntryRow {
        kind,
        of_task,
        balance,
        held,
    })
}

async fn takes_entry(conn: &mut PgConnection, account: AccountId, row: &EntryRow) -> bool {
    let inserted = sqlx::query(
        "INSERT INTO entries (account_id, task_id, kind, balance_change, held_change)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(account)
    .bind(row.of_task.then(ids::row_id::<OfTask>))
    .bind(row.kind)
    .bind(row.balance)
    .bind(row.held)
    .execute(conn)
    .await;
    inserted.is_ok()
}

async fn takes_account(
    conn: &mut PgConnection,
    balance: i64,
    held: i64,
    quota: Option<i64>,
) -> bool {
    let inserted = sqlx::query(
        "INSERT INTO accounts (id, name, balance, held, monthly_quota) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(ids::row_id::<OfAccount>())
    .bind(ids::random_hex())
    .bind(balance)
    .bind(held)
    .bind(quota)
    .execute(conn)
    .await;
    inserted.is_ok()
}

#[test]
fn the_database_stores_valid_rows_only() {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (account, conn) = runtime.block_on(async {
        let database = TestDatabase::create().await;
        let mut conn = database.connect().await;
        sqlx::query("SET synchronous_commit = off")
            .execute(&mut conn)
            .await
            .unwrap();
        (database.caller("", "1").await.account_id, conn)
    });
    let conn = std::cell::RefCell::new(conn);
    let rows = (entry_row(), amount(), amount(), prop::option::of(amount()));
    let config = ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((entry, balance, held, quota) in rows)| {
        let mut conn = conn.borrow_mut();
        let (took_entry, took_account) = runtime.block_on(async {
            let entry = takes_entry(&mut conn, account, &entry).await;
            (entry, takes_account(&mut conn, balance, held, quota).await)
        });
        prop_assert_eq!(took_entry, entry.is_sound());
        let sound = 0 <= held && held <= balance && quota.is_none_or(|quota| quota >= 0);
        prop_assert_eq!(took_account, sound);
    });
}

#[tokio::test]
async fn a_task_has_one_hold_and_one_settlement() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    let account = database.caller("", "1").await.account_id;
    let task: TaskId = ids::row_id();
    for (kind, balance, held, taken) in [
        ("hold", 0, 2, Ok(())),
        ("hold", 0, 2, Err("entries_hold_key")),
        ("capture", -1, -2, Ok(())),
        ("capture", -1, -2, Err("entries_settlement_key")),
        ("release", 0, -2, Err("entries_settlement_key")),
    ] {
        let inserted = sqlx::query(
            "INSERT INTO entries (account_id, task_id, kind, balance_change, held_change)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(account)
        .bind(task)
        .bind(kind)
        .bind(balance)
        .bind(held)
        .execute(&mut conn)
        .await;
        let constraint = inserted.map(drop).map_err(|error| {
            let error = error.into_database_error().unwrap();
            error.constraint().unwrap_or_default().to_owned()
        });
        assert_eq!(
            constraint.as_ref().map_err(String::as_str).copied(),
            taken,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_task_in_an_invalid_state_is_refused() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1.00").await;
    assert_eq!(caller.generate("a state").await.status, 200);
    let mut conn = app.database.connect().await;
    for change in [
        "status = 'done'",
        "status = 'failed'",
        "status = 'failed', images = NULL, failure = '{}'",
        "status = 'failed', images = NULL, failure = '{}', cost = NULL",
        "status = 'running'",
        "status = 'queued'",
        "cost = NULL",
        "images = NULL",
        "failure = '{}'",
        "n = 0",
        "unit_price = -1",
    ] {
        let update = sqlx::AssertSqlSafe(format!("UPDATE tasks SET {change}"));
        let error = sqlx::query(update).execute(&mut conn).await.unwrap_err();
        let error = error.into_database_error().unwrap();
        assert!(error.is_check_violation(), "{change}: {error}");
    }
    app.finish().await;
}
