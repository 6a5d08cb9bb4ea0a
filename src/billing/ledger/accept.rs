//! Accepts tasks: inserts them and thereby holds their prices.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query_as, query_file_as, types::Json};

use super::Terms;
use crate::{
    db::{Patience, interval},
    ids::{AccountId, FileId, KeyId, TaskId},
    money::Cny,
    tasks::{Request, Status, Task, store::FIRST_FENCE},
};

/// A task to accept.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// The account that pays.
    pub account_id: AccountId,
    /// The key that asks.
    pub api_key_id: KeyId,
    /// What to generate.
    pub request: Request,
    /// What it requires of a route: see `Requirements::column`.
    pub requirements: i16,
    /// The price of one image.
    pub unit_price: Cny,
    /// Names its images in their links; a credential.
    pub file_id: FileId,
    /// The client's name for the request.
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

impl NewTask {
    /// The task that it became, claimed by this process in the statement that inserted it.
    pub fn claimed(self, created_at: DateTime<Utc>, left: Duration) -> Task {
        Task {
            id: self.id,
            account_id: self.account_id,
            api_key_id: self.api_key_id,
            status: Status::Running,
            request: self.request,
            unit_price: self.unit_price,
            file_id: self.file_id,
            created_at,
            attempts: 1,
            fence: FIRST_FENCE,
            left,
        }
    }
}

/// Who begins a new task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Any worker that claims it.
    Queued,
    /// This process, at once: it is inserted as already claimed.
    Claimed {
        /// The route that generates it.
        route: String,
    },
}

/// A task that was accepted.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// Its id.
    pub id: TaskId,
    /// When it was accepted, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Whether it is as it was inserted: no other worker has claimed it.
    pub is_untouched: bool,
}

/// How a statement accepts tasks.
#[derive(Clone, Copy, Debug)]
pub struct Acceptance {
    /// How long to wait for locked rows.
    pub patience: Patience,
    /// By the database's clock; accepts nothing from then on. A statement that is not part of a transaction has such a
    /// time: if its connection falls silent, it may be executed at any later moment.
    pub until: Option<DateTime<Utc>>,
}

/// Accepts the tasks of those accounts that can pay for all of theirs and whose keys are all valid. Of the other
/// accounts nothing is accepted: a transaction that locks them decides task by task. A revoked key or a disabled
/// account counts from the commit that revoked or disabled it.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn accept(
    conn: &mut PgConnection,
    tasks: &[&NewTask],
    terms: &Terms,
    Acceptance { patience, until }: Acceptance,
) -> sqlx::Result<Vec<Accepted>> {
    let mut columns = Columns::default();
    for task in tasks {
        columns.push(task);
    }
    query_file_as!(
        Accepted,
        "src/billing/ledger/accept.sql",
        patience.lock_timeout(),
        terms.time_zone,
        interval(terms.deadline),
        interval(terms.lease),
        &columns.ids as _,
        &columns.accounts as _,
        &columns.keys as _,
        &columns.models as &[&str],
        &columns.qualities,
        &columns.resolutions,
        &columns.ratios,
        &columns.requirements,
        &columns.counts,
        &columns.unit_prices,
        &columns.file_ids as _,
        &columns.idempotency_keys as &[Option<&str>],
        &columns.fingerprints as &[&[u8]],
        &columns.waiters as &[Option<i32>],
        &columns.joined,
        &columns.routes as &[Option<&str>],
        &columns.requests as &[Json<&Request>],
        until,
    )
    .fetch_all(conn)
    .await
}

/// Those of these tasks that exist: an earlier try may have committed although it seemed to fail.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn present(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Accepted>> {
    query_as!(
        Accepted,
        r#"SELECT id AS "id!: TaskId", created_at AS "created_at!", (status = 'running' AND fence = $2) AS "is_untouched!"
           FROM tasks WHERE id = ANY($1)"#,
        ids as _,
        FIRST_FENCE,
    )
    .fetch_all(conn)
    .await
}

/// New tasks by column, for UNNEST.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<TaskId>,
    accounts: Vec<AccountId>,
    keys: Vec<KeyId>,
    models: Vec<&'a str>,
    qualities: Vec<String>,
    resolutions: Vec<String>,
    ratios: Vec<String>,
    requirements: Vec<i16>,
    counts: Vec<i16>,
    unit_prices: Vec<i64>,
    file_ids: Vec<FileId>,
    idempotency_keys: Vec<Option<&'a str>>,
    fingerprints: Vec<&'a [u8]>,
    waiters: Vec<Option<i32>>,
    joined: Vec<i16>,
    routes: Vec<Option<&'a str>>,
    requests: Vec<Json<&'a Request>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, task: &'a NewTask) {
        let request = &task.request;
        self.ids.push(task.id);
        self.accounts.push(task.account_id);
        self.keys.push(task.api_key_id);
        self.models.push(&request.model);
        self.qualities.push(request.quality.to_string());
        self.resolutions.push(request.resolution.to_string());
        self.ratios.push(request.ratio.to_string());
        self.requirements.push(task.requirements);
        self.counts.push(i16::from(request.n));
        self.unit_prices.push(task.unit_price.micros());
        self.file_ids.push(task.file_id);
        self.idempotency_keys.push(task.idempotency_key.as_deref());
        self.fingerprints.push(&task.fingerprint);
        self.waiters.push(task.waiter);
        self.joined.push(task.joined);
        self.routes.push(match &task.start {
            Start::Queued => None,
            Start::Claimed { route } => Some(route),
        });
        self.requests.push(Json(request));
    }
}
