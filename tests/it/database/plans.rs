//! Every query finds its rows by an index, so that none gets slower as tasks, entries and uploads grow.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::harness::database::TestDatabase;

/// Queries that read whole tables, by a part of their text.
const READ_ALL: [&str; 2] = [
    "FROM entries WHERE created_at >= audited_from($1)",
    "FROM open_tasks JOIN task_history USING (id)",
];
/// Tables that grow without end. Of the others, an index may be read from its beginning, as the queue is, but no primary
/// key of open tasks.
const GROWING: [&str; 2] = ["task_history", "entries"];

/// The statements of `.sqlx/`, each with its number of parameters.
fn statements() -> Vec<(String, usize)> {
    let files = fs::read_dir(".sqlx")
        .unwrap()
        .map(|file| file.unwrap().path());
    let mut statements: Vec<(String, usize)> = files
        .map(|path| {
            let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            let parameters = file["describe"]["parameters"]["Left"].as_array();
            let sql = file["query"].as_str().unwrap().to_owned();
            (sql, parameters.map_or(0, Vec::len))
        })
        .collect();
    statements.extend(summaries());
    statements.sort();
    statements
}

/// The queries of summaries, which are put together at run time.
fn summaries() -> impl Iterator<Item = (String, usize)> {
    let source = |name: &str| fs::read_to_string(format!("src/tasks/store/{name}.rs")).unwrap();
    let (row, lookup) = (source("row"), source("lookup"));
    let columns = row.split("SUMMARY: &str =").nth(1).unwrap();
    let columns = columns.split('"').nth(1).unwrap().to_owned();
    let queries: Vec<String> = lookup
        .split('"')
        .filter(|text| text.starts_with("SELECT {SUMMARY}"))
        .map(|text| text.replace("{SUMMARY}", &columns))
        .collect();
    assert!(queries.len() >= 5, "{queries:?}");
    queries.into_iter().map(|sql| {
        let parameters = (1..=9).filter(|n| sql.contains(&format!("${n}"))).count();
        (sql, parameters)
    })
}

/// The plan for any values of its parameters.
async fn plan(conn: &mut PgConnection, sql: &str, parameters: usize) -> Value {
    let nulls = vec!["NULL"; parameters].join(", ");
    let arguments = match parameters {
        0 => String::new(),
        _ => format!("({nulls})"),
    };
    conn.execute(AssertSqlSafe(format!("PREPARE planned AS {sql}")))
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE planned{arguments}");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain))
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    conn.execute("DEALLOCATE planned").await.unwrap();
    plan[0]["Plan"].clone()
}

/// The relations that a plan scans without an index condition.
fn scanned(node: &Value, found: &mut BTreeSet<String>) {
    let is = |field: &str| node[field].as_str().unwrap_or_default();
    let relation = is("Relation Name");
    let grows = GROWING.iter().any(|table| relation.starts_with(table));
    let scans = match is("Node Type") {
        "Seq Scan" => true,
        "Index Scan" | "Index Only Scan" => {
            (grows || is("Index Name") == "open_tasks_pkey") && node["Index Cond"].is_null()
        }
        _ => false,
    };
    if scans {
        found.insert(relation.to_owned());
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        scanned(child, found);
    }
}

#[tokio::test]
async fn every_query_finds_its_rows_by_an_index() {
    let database = TestDatabase::create().await;
    let mut conn = PgConnection::connect_with(&database.options())
        .await
        .unwrap();
    conn.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
        .await
        .unwrap();
    let statements = statements();
    assert!(statements.len() > 40, "{}", statements.len());
    // With the statistics of new tables, and with those of empty ones: a plan may be as old as either.
    for (sql, parameters) in &statements {
        assert_indexed(&mut conn, sql, *parameters).await;
    }
    conn.execute("VACUUM ANALYZE").await.unwrap();
    for (sql, parameters) in &statements {
        assert_indexed(&mut conn, sql, *parameters).await;
    }
}

async fn assert_indexed(conn: &mut PgConnection, sql: &str, parameters: usize) {
    let mut lines = sql.lines().filter(|line| !line.starts_with("--"));
    let words = lines.next().and_then(|line| line.split_whitespace().next());
    let verb = words.unwrap_or_default();
    assert!(
        ["SELECT", "WITH", "INSERT", "UPDATE", "DELETE"].contains(&verb),
        "{sql}"
    );
    let mut found = BTreeSet::new();
    scanned(&plan(conn, sql, parameters).await, &mut found);
    let may_read_all = READ_ALL.iter().any(|part| sql.contains(part));
    assert!(found.is_empty() || may_read_all, "scans {found:?}: {sql}");
}
