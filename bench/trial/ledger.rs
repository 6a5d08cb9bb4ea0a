//! The final state of the database, read past every proxy.

use std::time::{Duration, Instant};

use easel::billing;
use uuid::Uuid;

use super::{
    book::{Marker, marker_in},
    stage::{DEADLINE_S, Stage},
};

/// The time from the last request until every task must have ended: a deadline, and a lease or two.
const QUIET_WAIT: Duration = Duration::from_secs(DEADLINE_S + 60);

/// The current state of a task.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) id: Uuid,
    /// `None`: its prompt is from no client.
    pub(super) marker: Option<Marker>,
    pub(super) status: String,
    pub(super) n: usize,
    pub(super) unit_price: i64,
    /// The captured amount, in micro-CNY.
    pub(super) captured: i64,
    /// The keys of its images in the store.
    pub(super) objects: Vec<String>,
    pub(super) attempts: i16,
    /// From acceptance to end, in seconds.
    pub(super) took_s: f64,
}

/// The tasks and sums in the database.
pub(super) struct Ledger {
    pub(super) tasks: Vec<Task>,
    /// Each invariant, and how often it is violated.
    pub(super) faults: Vec<(&'static str, i64)>,
    /// The number of open tasks.
    pub(super) open: i64,
    /// The sum of all holds, in micro-CNY.
    pub(super) held: i64,
}

/// Returns when every task has ended, or when the time for it is over.
pub(super) async fn wait_until_quiet(stage: &Stage) -> anyhow::Result<()> {
    let mut conn = stage.connect().await?;
    let began = Instant::now();
    while began.elapsed() < QUIET_WAIT {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks WHERE ended_at IS NULL")
            .fetch_one(&mut conn)
            .await?;
        if open == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

type Row = (Uuid, String, String, i16, i64, i64, Vec<String>, i16, f64);

impl Ledger {
    /// Reads the state past the proxies.
    pub(super) async fn read(stage: &Stage) -> anyhow::Result<Self> {
        let mut conn = stage.connect().await?;
        let faults = billing::ledger::faults(&mut conn, billing::ledger::Scope::Everything).await?;
        let open = sqlx::query_scalar("SELECT count(*) FROM tasks WHERE ended_at IS NULL")
            .fetch_one(&mut conn)
            .await?;
        let held = sqlx::query_scalar("SELECT COALESCE(sum(held), 0)::bigint FROM accounts")
            .fetch_one(&mut conn)
            .await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT t.id, COALESCE(t.request ->> 'prompt', ''), t.status, t.n, t.unit_price,
                 COALESCE((SELECT -sum(balance_change) FROM entries e
                           WHERE e.task_id = t.id AND e.kind = 'capture'), 0)::bigint,
                 ARRAY(SELECT i ->> 'object' FROM jsonb_array_elements(t.images) i),
                 t.attempts,
                 COALESCE(EXTRACT(EPOCH FROM t.ended_at - t.created_at), 0)::float8
             FROM tasks t",
        )
        .fetch_all(&mut conn)
        .await?;
        Ok(Self {
            tasks: rows.into_iter().map(task).collect(),
            faults,
            open,
            held,
        })
    }
}

fn task(row: Row) -> Task {
    let (id, prompt, status, n, unit_price, captured, objects, attempts, took_s) = row;
    Task {
        id,
        marker: marker_in(prompt.as_bytes()),
        status,
        n: usize::try_from(n).unwrap_or_default(),
        unit_price,
        captured,
        objects,
        attempts,
        took_s,
    }
}
