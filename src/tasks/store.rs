//! Tasks in the database. The database's clock decides leases and deadlines; a task is changed only
//! under the fence of its latest claim.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, postgres::types::PgInterval, query, query_as, query_scalar, types::Json};

use super::{End, Failure, Image, Outcome, Request, Status, Task};
use crate::{
    ids::{AccountId, FileId, KeyId, TaskId},
    money::Cny,
};

/// Where tasks are announced that wait for a worker, and those that have ended.
pub const QUEUED_CHANNEL: &str = "easel_queued";
pub const ENDED_CHANNEL: &str = "easel_ended";

/// How many ids fit one notification's 8000 bytes.
const NOTIFIED_IDS_MAX: usize = 200;

/// A task that is about to be accepted.
#[derive(Clone, Debug)]
pub struct NewTask {
    pub id: TaskId,
    pub account_id: AccountId,
    pub api_key_id: KeyId,
    pub request: Request,
    pub unit_price: Cny,
    pub file_id: FileId,
    pub idempotency_key: Option<String>,
    pub fingerprint: Vec<u8>,
    pub start: Start,
}

/// Who begins a new task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Whichever worker claims it.
    Queued,
    /// This process, at once: it is inserted as already claimed.
    Claimed,
}

/// How long claims and tasks last.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub lease: Duration,
    pub deadline: Duration,
}

/// A row as it comes from the database.
struct Row {
    id: TaskId,
    account_id: AccountId,
    api_key_id: KeyId,
    status: Status,
    request: Json<Request>,
    unit_price: Cny,
    file_id: FileId,
    created_at: DateTime<Utc>,
    deadline_at: DateTime<Utc>,
    attempts: i16,
    fence: i64,
    ended_at: Option<DateTime<Utc>>,
    cost: Option<Cny>,
    images: Option<Json<Vec<Image>>>,
    failure: Option<Json<Failure>>,
}

impl From<Row> for Task {
    fn from(row: Row) -> Self {
        let outcome = match (row.images, row.failure) {
            (Some(Json(images)), _) => Some(Outcome::Completed(images)),
            (None, Some(Json(failure))) => Some(Outcome::Failed(failure)),
            (None, None) => None,
        };
        let end = match (row.ended_at, row.cost, outcome) {
            (Some(at), Some(cost), Some(outcome)) => Some(End { at, cost, outcome }),
            _ => None,
        };
        Self {
            id: row.id,
            account_id: row.account_id,
            api_key_id: row.api_key_id,
            status: row.status,
            request: row.request.0,
            unit_price: row.unit_price,
            file_id: row.file_id,
            created_at: row.created_at,
            deadline_at: row.deadline_at,
            attempts: row.attempts,
            fence: row.fence,
            end,
        }
    }
}

/// Inserts tasks whose holds are granted, and says when they were created.
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
               idempotency_key, fingerprint, deadline_at, status, attempts, fence, lease_until)
           SELECT id, account_id, api_key_id, request, (request->>'n')::smallint, unit_price, file_id,
               idempotency_key, fingerprint, now() + $10,
               CASE WHEN claimed THEN 'running' ELSE 'queued' END,
               claimed::int, claimed::int, CASE WHEN claimed THEN now() + $11 END
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::jsonb[], $5::bigint[], $6::uuid[],
               $7::text[], $8::bytea[], $9::boolean[])
               AS new (id, account_id, api_key_id, request, unit_price, file_id,
                   idempotency_key, fingerprint, claimed)
           RETURNING t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Json<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.deadline_at, t.attempts, t.fence,
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Json<Vec<Image>>",
               t.failure AS "failure: Json<Failure>""#,
        &columns.ids,
        &columns.accounts,
        &columns.keys,
        &columns.requests as &[Json<&Request>],
        &columns.unit_prices,
        &columns.file_ids,
        &columns.idempotency_keys as &[Option<&str>],
        &columns.fingerprints as &[&[u8]],
        &columns.claimed,
        interval(terms.deadline),
        interval(terms.lease),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// New tasks, column by column, as UNNEST takes them.
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
        self.claimed.push(task.start == Start::Claimed);
    }
}

/// Tells workers that tasks are queued, once the transaction commits. A hint: they look anyway.
pub async fn notify_queued(conn: &mut PgConnection) -> sqlx::Result<()> {
    query!("SELECT pg_notify($1, '')", QUEUED_CHANNEL)
        .execute(conn)
        .await
        .map(drop)
}

/// Claims up to `limit` queued tasks, the longest waiting first.
pub async fn claim(
    conn: &mut PgConnection,
    limit: i64,
    lease: Duration,
) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"UPDATE tasks AS t
           SET status = 'running', lease_until = now() + $2, attempts = attempts + 1, fence = fence + 1
           FROM (SELECT id FROM tasks
                 WHERE status = 'queued' AND run_at <= now() AND deadline_at > now()
                 ORDER BY run_at, id LIMIT $1 FOR UPDATE SKIP LOCKED) AS next
           WHERE t.id = next.id
           RETURNING t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Json<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.deadline_at, t.attempts, t.fence,
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Json<Vec<Image>>",
               t.failure AS "failure: Json<Failure>""#,
        limit,
        interval(lease),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// Renews the leases of claimed tasks; those that are not in the answer were lost.
pub async fn renew(
    conn: &mut PgConnection,
    claims: &[(TaskId, i64)],
    lease: Duration,
) -> sqlx::Result<Vec<TaskId>> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    query_scalar!(
        "UPDATE tasks SET lease_until = now() + $3
         FROM UNNEST($1::uuid[], $2::bigint[]) AS mine (id, fence)
         WHERE tasks.id = mine.id AND tasks.fence = mine.fence AND status = 'running'
         RETURNING tasks.id",
        &ids,
        &fences,
        interval(lease),
    )
    .fetch_all(conn)
    .await
}

/// Puts claimed tasks back into the queue, as if they had not been begun: at a shutdown.
pub async fn unclaim(conn: &mut PgConnection, claims: &[(TaskId, i64)]) -> sqlx::Result<u64> {
    let (ids, fences): (Vec<_>, Vec<_>) = claims.iter().copied().unzip();
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, attempts = attempts - 1
         FROM UNNEST($1::uuid[], $2::bigint[]) AS mine (id, fence)
         WHERE tasks.id = mine.id AND tasks.fence = mine.fence AND status = 'running'",
        &ids,
        &fences,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Puts tasks whose worker is lost back into the queue, where attempts and time are left. Their
/// number.
pub async fn requeue_lost(conn: &mut PgConnection, attempts_max: i16) -> sqlx::Result<u64> {
    let done = query!(
        "UPDATE tasks SET status = 'queued', lease_until = NULL, run_at = now()
         WHERE id IN (SELECT id FROM tasks
                      WHERE status = 'running' AND lease_until < now()
                          AND attempts < $1 AND deadline_at > now()
                      FOR UPDATE SKIP LOCKED)",
        attempts_max,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Open tasks that nobody will end: past their deadline, or lost with no attempt left.
pub async fn hopeless(
    conn: &mut PgConnection,
    attempts_max: i16,
    limit: i64,
) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks
           WHERE (status = 'queued' AND deadline_at <= now())
               OR (status = 'running' AND lease_until < now()
                   AND (attempts >= $1 OR deadline_at <= now()))
           LIMIT $2"#,
        attempts_max,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// How a task is to end, by whoever has its fence.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub id: TaskId,
    pub fence: i64,
    pub outcome: &'a Outcome,
}

/// What a task came to, for the ledger.
#[derive(Debug)]
pub struct Ended {
    pub id: TaskId,
    pub account_id: AccountId,
    pub held: Cny,
    pub cost: Cny,
    pub at: DateTime<Utc>,
}

/// Ends tasks. Those that are not in the answer had ended already, or had been claimed anew: nothing
/// of them was changed.
pub async fn end(conn: &mut PgConnection, endings: &[Ending<'_>]) -> sqlx::Result<Vec<Ended>> {
    let (ids, fences): (Vec<_>, Vec<_>) = endings.iter().map(|e| (e.id, e.fence)).unzip();
    let (images, failures): (Vec<_>, Vec<_>) = endings
        .iter()
        .map(|ending| match ending.outcome {
            Outcome::Completed(images) => (Some(Json(images)), None),
            Outcome::Failed(failure) => (None, Some(Json(failure))),
        })
        .unzip();
    query_as!(
        Ended,
        r#"UPDATE tasks AS t
           SET status = CASE WHEN e.images IS NULL THEN 'failed' ELSE 'completed' END,
               cost = unit_price * COALESCE(jsonb_array_length(e.images), 0),
               ended_at = now(), lease_until = NULL, images = e.images, failure = e.failure
           FROM UNNEST($1::uuid[], $2::bigint[], $3::jsonb[], $4::jsonb[])
               AS e (id, fence, images, failure)
           WHERE t.id = e.id AND t.fence = e.fence AND t.status IN ('queued', 'running')
           RETURNING t.id, t.account_id, t.unit_price * t.n AS "held!: Cny", t.cost AS "cost!: Cny",
               t.ended_at AS "at!""#,
        &ids,
        &fences,
        &images as &[Option<Json<&Vec<Image>>>],
        &failures as &[Option<Json<&Failure>>],
    )
    .fetch_all(conn)
    .await
}

/// Tells who waits elsewhere that tasks have ended, once the transaction commits. A hint.
pub async fn notify_ended(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<()> {
    for chunk in ids.chunks(NOTIFIED_IDS_MAX) {
        let payload = chunk
            .iter()
            .map(|id| id.simple().to_string())
            .collect::<Vec<_>>()
            .join(",");
        query!("SELECT pg_notify($1, $2)", ENDED_CHANNEL, payload)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// A task of one account.
pub async fn get(
    conn: &mut PgConnection,
    account_id: AccountId,
    id: TaskId,
) -> sqlx::Result<Option<Task>> {
    let row = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks WHERE id = $1 AND account_id = $2"#,
        id,
        account_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Task::from))
}

/// A page of an account's tasks, newest first.
pub async fn list(
    conn: &mut PgConnection,
    account_id: AccountId,
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks WHERE account_id = $1 AND ($2::uuid IS NULL OR id < $2)
           ORDER BY id DESC LIMIT $3"#,
        account_id,
        after,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// A page of an account's ended tasks, newest first, with the names of the keys that asked for them; of
/// those accepted within a time, from its start to before its end.
pub async fn ended(
    conn: &mut PgConnection,
    account_id: AccountId,
    (since, until): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<(Task, String)>> {
    let rows = query!(
        r#"SELECT t.id, t.account_id, t.api_key_id, t.status AS "status: Status", t.request AS "request: Json<Request>",
               t.unit_price AS "unit_price: Cny", t.file_id, t.created_at, t.deadline_at, t.attempts, t.fence,
               t.ended_at, t.cost AS "cost: Cny", t.images AS "images: Json<Vec<Image>>",
               t.failure AS "failure: Json<Failure>",
               k.name AS api_key
           FROM tasks t JOIN api_keys k ON k.id = t.api_key_id
           WHERE t.account_id = $1 AND t.status IN ('completed', 'failed')
               AND ($2::uuid IS NULL OR t.id < $2)
               AND ($4::timestamptz IS NULL OR t.created_at >= $4)
               AND ($5::timestamptz IS NULL OR t.created_at < $5)
           ORDER BY t.id DESC LIMIT $3"#,
        account_id,
        after,
        limit,
        since,
        until,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let task = Row {
                id: row.id,
                account_id: row.account_id,
                api_key_id: row.api_key_id,
                status: row.status,
                request: row.request,
                unit_price: row.unit_price,
                file_id: row.file_id,
                created_at: row.created_at,
                deadline_at: row.deadline_at,
                attempts: row.attempts,
                fence: row.fence,
                ended_at: row.ended_at,
                cost: row.cost,
                images: row.images,
                failure: row.failure,
            };
            (task.into(), row.api_key)
        })
        .collect())
}

/// Which of some tasks have ended.
pub async fn ended_among(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks WHERE id = ANY($1) AND status IN ('completed', 'failed')"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// Which of some tasks are there at all.
pub async fn present(conn: &mut PgConnection, ids: &[TaskId]) -> sqlx::Result<Vec<Task>> {
    let rows = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks WHERE id = ANY($1)"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// The completed task whose images a link names.
pub async fn by_file_id(conn: &mut PgConnection, file_id: FileId) -> sqlx::Result<Option<Task>> {
    let row = query_as!(
        Row,
        r#"SELECT id, account_id, api_key_id, status AS "status: Status", request AS "request: Json<Request>",
               unit_price AS "unit_price: Cny", file_id, created_at, deadline_at, attempts, fence,
               ended_at, cost AS "cost: Cny", images AS "images: Json<Vec<Image>>",
               failure AS "failure: Json<Failure>"
           FROM tasks WHERE file_id = $1 AND status = 'completed'"#,
        file_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Task::from))
}

/// How many tasks wait for a worker, counted to `at_most`.
pub async fn count_queued(conn: &mut PgConnection, at_most: i64) -> sqlx::Result<i64> {
    query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (SELECT FROM tasks WHERE status = 'queued' LIMIT $1) q"#,
        at_most,
    )
    .fetch_one(conn)
    .await
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}
