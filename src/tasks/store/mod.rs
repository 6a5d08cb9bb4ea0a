//! Tasks in the database: their rows and how they are inserted.

mod lookup;
mod notify;
mod queue;
mod row;
mod settlement;
mod sweep;
mod waiters;
mod waiting;

pub use lookup::{by_file_id, ended_among, list, list_ended, present, summaries};
pub use notify::{ASKED_CHANNEL, ENDED_CHANNEL, QUEUED_CHANNEL, REPLIED_CHANNEL, notify_ended};
pub use queue::{
    claim, is_any_lost, is_any_waiting, lock_queue, note_job, release_claims, renew, requeue,
    requeue_lost, running,
};
pub use settlement::{Overdue, OverdueTask, end, overdue};
pub use sweep::{Unswept, mark_swept, unswept};
pub use waiters::remove_waiter;
pub use waiting::{Demand, Line, Waiting, count_queued, queued_classes, step_aside, waiting};

use std::time::Duration;

use sqlx::{PgConnection, postgres::types::PgInterval, query_as, types::Json};

use self::row::{Parsed, Row};
use super::{Request, Status, Task};
use crate::{
    ids::{AccountId, FileId, KeyId, TaskId},
    money::Cny,
};

/// The fence of a task that is inserted as already claimed.
pub const FIRST_FENCE: i64 = 1;

/// A task to insert.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Identifies it; chosen by the submitter.
    pub id: TaskId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// The API key that requested it.
    pub api_key_id: KeyId,
    /// What to generate.
    pub request: Request,
    /// The price of one image.
    pub unit_price: Cny,
    /// Names its images in their links; a credential.
    pub file_id: FileId,
    /// As the client sent it; `None`: it sent none.
    pub idempotency_key: Option<String>,
    /// Identifies the request: see `repeats::fingerprint`.
    pub fingerprint: Vec<u8>,
    /// Who begins it.
    pub start: Start,
    /// The process where its caller waits; `None`: nobody waits.
    pub waiter: Option<i32>,
    /// The number of the retry that it is; 0: not a retry.
    pub joined: i16,
}

/// Who begins a new task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Any worker that claims it.
    Queued,
    /// This process, at once: it is inserted as already claimed, over this route.
    Claimed {
        /// The name of the route.
        route: String,
    },
}

/// How long claims and tasks last.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a claim lasts without a renewal.
    pub lease: Duration,
    /// How long a task may take, from its creation.
    pub deadline: Duration,
}

/// Inserts tasks whose holds are granted and returns their rows.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn insert(
    conn: &mut PgConnection,
    tasks: &[&NewTask],
    terms: Terms,
) -> sqlx::Result<Vec<Task>> {
    let mut columns = Columns::default();
    for task in tasks {
        columns.push(task);
    }
    let rows = query_as!(
        Row,
        r#"INSERT INTO tasks AS t (id, account_id, api_key_id, request, n, unit_price, file_id,
               idempotency_key, fingerprint, deadline_at, status, attempts, fence, lease_until, route, waiter, joined)
           SELECT id, account_id, api_key_id, request, (request->>'n')::smallint, unit_price, file_id,
               idempotency_key, fingerprint, now() + $10,
               CASE WHEN claimed THEN 'running' ELSE 'queued' END,
               claimed::int, claimed::int, CASE WHEN claimed THEN now() + $11 END, route, waiter, joined
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::jsonb[], $5::bigint[], $6::uuid[],
               $7::text[], $8::bytea[], $9::boolean[], $12::text[], $13::int[], $14::smallint[])
               AS new (id, account_id, api_key_id, request, unit_price, file_id,
                   idempotency_key, fingerprint, claimed, route, waiter, joined)
           RETURNING t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Parsed<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.attempts, t.fence,
               (extract(epoch FROM t.deadline_at - now()) * 1000)::bigint AS "left_ms!""#,
        &columns.ids as _,
        &columns.accounts as _,
        &columns.keys as _,
        &columns.requests as &[Json<&Request>],
        &columns.unit_prices,
        &columns.file_ids as _,
        &columns.idempotency_keys as &[Option<&str>],
        &columns.fingerprints as &[&[u8]],
        &columns.claimed,
        interval(terms.deadline),
        interval(terms.lease),
        &columns.routes as &[Option<&str>],
        &columns.waiters as &[Option<i32>],
        &columns.joined,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Task::try_from).collect()
}

/// New tasks by column, for UNNEST.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<TaskId>,
    accounts: Vec<AccountId>,
    keys: Vec<KeyId>,
    requests: Vec<Json<&'a Request>>,
    unit_prices: Vec<i64>,
    file_ids: Vec<FileId>,
    idempotency_keys: Vec<Option<&'a str>>,
    fingerprints: Vec<&'a [u8]>,
    claimed: Vec<bool>,
    routes: Vec<Option<&'a str>>,
    waiters: Vec<Option<i32>>,
    joined: Vec<i16>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, task: &'a NewTask) {
        self.ids.push(task.id);
        self.accounts.push(task.account_id);
        self.keys.push(task.api_key_id);
        self.requests.push(Json(&task.request));
        self.unit_prices.push(task.unit_price.micros());
        self.file_ids.push(task.file_id);
        self.idempotency_keys.push(task.idempotency_key.as_deref());
        self.fingerprints.push(&task.fingerprint);
        let (claimed, route) = match &task.start {
            Start::Queued => (false, None),
            Start::Claimed { route } => (true, Some(route.as_str())),
        };
        self.claimed.push(claimed);
        self.routes.push(route);
        self.waiters.push(task.waiter);
        self.joined.push(task.joined);
    }
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}
