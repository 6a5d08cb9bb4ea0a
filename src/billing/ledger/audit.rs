//! Checks the ledger: each promise is a query.

use sqlx::{Connection, Executor, PgConnection, query};

/// What the audit reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What came after the last closed month.
    Unclosed,
    /// Everything that is not archived.
    Everything,
}

/// Checks the ledger's invariants. Returns each invariant with its number of violations, which must
/// be zero at any time, also while tasks run.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn faults(
    conn: &mut PgConnection,
    scope: Scope,
) -> sqlx::Result<Vec<(&'static str, i64)>> {
    let everything = scope == Scope::Everything;
    let mut tx = conn.begin().await?;
    // Everything is read.
    tx.execute("SET LOCAL enable_seqscan = on").await?;
    let mut faults = account_faults(&mut tx, everything).await?.to_vec();
    faults.extend(task_faults(&mut tx, everything).await?);
    tx.rollback().await?;
    Ok(faults)
}

async fn account_faults(
    conn: &mut PgConnection,
    everything: bool,
) -> sqlx::Result<[(&'static str, i64); 3]> {
    let row = query!(
        r#"SELECT
               count(*) FILTER (WHERE a.balance <> COALESCE(e.balance, 0) + COALESCE(s.balance, 0)
                   OR a.spent <> COALESCE(e.spent, 0) + COALESCE(s.spent, 0)) AS "sums!",
               count(*) FILTER (WHERE a.held <> COALESCE(t.held, 0)) AS "holds!",
               count(*) FILTER (WHERE a.held < 0 OR a.held > a.balance) AS "bounds!"
           FROM accounts a
           LEFT JOIN (SELECT account_id, sum(balance) AS balance, sum(spent) AS spent
                      FROM closed_sums JOIN closed_partitions USING (name) WHERE archived OR NOT $1
                      GROUP BY account_id) s ON s.account_id = a.id
           LEFT JOIN (SELECT account_id, sum(balance_change) AS balance,
                          -sum(balance_change) FILTER (WHERE kind = 'capture') AS spent
                      FROM entries WHERE created_at >= audited_from($1) GROUP BY account_id) e ON e.account_id = a.id
           LEFT JOIN (SELECT account_id, sum(unit_price::numeric * n) AS held
                      FROM open_tasks GROUP BY account_id) t ON t.account_id = a.id"#,
        everything,
    )
    .fetch_one(conn)
    .await?;
    Ok([
        (
            "the entries of an account add up to its balance and spending",
            row.sums,
        ),
        ("what is held is the price of the open tasks", row.holds),
        (
            "what is held is neither negative nor more than the balance",
            row.bounds,
        ),
    ])
}

async fn task_faults(
    conn: &mut PgConnection,
    everything: bool,
) -> sqlx::Result<[(&'static str, i64); 3]> {
    let row = query!(
        r#"SELECT
               (SELECT count(*) FROM open_tasks JOIN task_history USING (id)) AS "ends!",
               count(*) FILTER (WHERE h.cost IS DISTINCT FROM
                   h.unit_price::numeric * COALESCE(jsonb_array_length(h.images), 0)) AS "costs!",
               count(*) FILTER (WHERE COALESCE(h.cost, 0) <> COALESCE(e.captured, 0)
                   OR e.captures <> 1) AS "captures!"
           FROM (SELECT * FROM task_history WHERE id >= uuid_of(audited_from($1))) h
           FULL JOIN (SELECT task_id, account_id, count(*) AS captures, -sum(balance_change) AS captured
                      FROM entries WHERE kind = 'capture' AND created_at >= audited_from($1)
                          AND task_id >= uuid_of(audited_from($1)) GROUP BY task_id, account_id) e
               ON e.task_id = h.id AND e.account_id = h.account_id"#,
        everything,
    )
    .fetch_one(conn)
    .await?;
    Ok([
        ("a task is open or has ended, never both", row.ends),
        (
            "a task costs the price of the images delivered, nothing if it failed",
            row.costs,
        ),
        ("what a task costs is captured once", row.captures),
    ])
}
