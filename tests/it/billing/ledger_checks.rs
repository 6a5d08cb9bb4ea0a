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
    let faults = ledger::faults(conn, ledger::Scope::Everything)
        .await
        .unwrap();
    let broken = faults.into_iter().filter(|(_, count)| *count > 0);
    broken.map(|(promise, _)| promise).collect()
}

const SUMS: &str = "the entries of an account add up to its balance and spending";
const HOLDS: &str = "what is held is the price of the open tasks";
const ENDS: &str = "a task is open or has ended, never both";
const COSTS: &str = "a task costs the price of the images delivered, nothing if it failed";
const CAPTURES: &str = "what a task costs is captured once";

/// An open task of 0.20 CNY of the only account.
const OPEN_TASK: &str = "INSERT INTO open_tasks (id, account_id, api_key_id, status, model, quality, resolution, ratio,
        requirements, n, unit_price, file_id, fingerprint, deadline_at, request)
    SELECT $1, account_id, id, 'queued', 'm', 'low', '1k', '1:1', 0, 1, 200000, gen_random_uuid(), '', now(), '{}'
    FROM api_keys";

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
        ("UPDATE accounts SET held = 1", &[HOLDS]),
        ("UPDATE accounts SET spent = spent - 1", &[SUMS]),
        ("DELETE FROM entries WHERE kind = 'top_up'", &[SUMS]),
        (
            "DELETE FROM entries WHERE kind = 'capture'",
            &[SUMS, CAPTURES],
        ),
        (
            "UPDATE entries SET balance_change = balance_change - 1 WHERE kind = 'capture'",
            &[SUMS, CAPTURES],
        ),
        ("DELETE FROM task_history", &[CAPTURES]),
        (
            "UPDATE task_history SET status = 'failed', cost = 0, images = NULL, failure = '{}'",
            &[CAPTURES],
        ),
        (
            "INSERT INTO open_tasks (id, account_id, api_key_id, status, model, quality, resolution, ratio,
                 requirements, n, unit_price, file_id, fingerprint, deadline_at, request)
             SELECT id, account_id, api_key_id, 'queued', model, quality, resolution, ratio,
                 0, n, unit_price, file_id, fingerprint, now(), request FROM task_history",
            &[HOLDS, ENDS],
        ),
    ] {
        let mut tx = conn.begin().await.unwrap();
        let done = sqlx::query(tampering).execute(&mut *tx).await.unwrap();
        assert!(done.rows_affected() > 0, "{tampering}");
        assert_eq!(broken(&mut tx).await, found, "{tampering}");
        tx.rollback().await.unwrap();
    }
    // Of the rows of the first version, the database does not check this.
    let mut tx = conn.begin().await.unwrap();
    let tampering = "DO $$
        DECLARE partition text := (SELECT tableoid::regclass FROM task_history);
        BEGIN
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', partition, partition || '_status_check');
            UPDATE task_history SET cost = cost - 1;
        END $$";
    sqlx::query(tampering).execute(&mut *tx).await.unwrap();
    assert_eq!(broken(&mut tx).await, [COSTS, CAPTURES]);
    tx.rollback().await.unwrap();
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
    assert_eq!(broken(&mut tx).await, [SUMS, CAPTURES]);
    tx.rollback().await.unwrap();
    app.finish().await;
}

#[derive(Clone, Debug)]
struct EntryRow {
    kind: &'static str,
    of_task: bool,
    balance: i64,
}

impl EntryRow {
    fn is_sound(&self) -> bool {
        match self.kind {
            "top_up" => !self.of_task,
            "capture" => self.of_task && self.balance < 0,
            _ => false,
        }
    }
}

/// Small numbers often, so that they collide; large ones too.
fn amount() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -2_i64..=2, 1 => -1_000_000_000_000_i64..1_000_000_000_000]
}

fn entry_row() -> impl Strategy<Value = EntryRow> {
    let kinds = ["top_up", "capture", "hold", "refund"];
    let fields = (
        prop::sample::select(kinds.to_vec()),
        any::<bool>(),
        amount(),
    );
    fields.prop_map(|(kind, of_task, balance)| EntryRow {
        kind,
        of_task,
        balance,
    })
}

async fn takes_entry(conn: &mut PgConnection, account: AccountId, row: &EntryRow) -> bool {
    let inserted = sqlx::query(
        "INSERT INTO entries (account_id, task_id, kind, balance_change) VALUES ($1, $2, $3, $4)",
    )
    .bind(account)
    .bind(row.of_task.then(ids::row_id::<OfTask>))
    .bind(row.kind)
    .bind(row.balance)
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
async fn a_task_is_captured_once() {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    let account = database.caller("", "1").await.account_id;
    let task: TaskId = ids::row_id();
    let mut capture = async || {
        sqlx::query(
            "INSERT INTO entries (account_id, task_id, kind, balance_change) VALUES ($1, $2, 'capture', -1)",
        )
        .bind(account)
        .bind(task)
        .execute(&mut conn)
        .await
    };

    assert!(capture().await.is_ok());

    let again = capture().await.unwrap_err().into_database_error().unwrap();
    assert!(again.is_unique_violation(), "{again}");
}

#[tokio::test]
async fn a_task_in_an_invalid_state_is_refused() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1.00").await;
    assert_eq!(caller.generate("a state").await.status, 200);
    let mut conn = app.database.connect().await;
    let mut tx = conn.begin().await.unwrap();
    let task: TaskId = ids::row_id();
    sqlx::query(OPEN_TASK)
        .bind(task)
        .execute(&mut *tx)
        .await
        .unwrap();
    for (table, change) in [
        ("task_history", "status = 'done'"),
        ("task_history", "status = 'failed'"),
        ("task_history", "status = 'queued'"),
        (
            "task_history",
            "status = 'failed', images = NULL, failure = '{}'",
        ),
        ("task_history", "cost = cost - 1"),
        ("task_history", "images = NULL"),
        ("task_history", "images = '[]'"),
        ("task_history", "failure = '{}'"),
        ("task_history", "unit_price = 300000"),
        ("open_tasks", "status = 'completed'"),
        ("open_tasks", "status = 'running'"),
        ("open_tasks", "lease_until = now()"),
        ("open_tasks", "n = 0"),
        ("open_tasks", "unit_price = -1"),
    ] {
        let mut savepoint = tx.begin().await.unwrap();
        let update = sqlx::AssertSqlSafe(format!("UPDATE {table} SET {change}"));
        let error = sqlx::query(update)
            .execute(&mut *savepoint)
            .await
            .unwrap_err();
        let error = error.into_database_error().unwrap();
        assert!(error.is_check_violation(), "{table}: {change}: {error}");
        savepoint.rollback().await.unwrap();
    }
    tx.rollback().await.unwrap();
    app.finish().await;
}
