//! Rows of `tasks` as tasks. A row can be unreadable: another version of the program may have written it.

use std::{error::Error, fmt, time::Duration};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::{
    Decode, Postgres, Row as _, Type,
    error::BoxDynError,
    postgres::{PgRow, PgTypeInfo, PgValueRef},
    types::Json,
};

use crate::{
    ids::{AccountId, FileId, KeyId, TaskId},
    money::Cny,
    tasks::{End, Outcome, Request, Status, Summary, Task},
};

/// The columns of a [`Task`].
pub(super) struct Row {
    /// `id`.
    pub(super) id: TaskId,
    /// `account_id`.
    pub(super) account_id: AccountId,
    /// `api_key_id`.
    pub(super) api_key_id: KeyId,
    /// `status`.
    pub(super) status: Status,
    /// `request`, which may be unreadable.
    pub(super) request: Parsed<Request>,
    /// `unit_price`.
    pub(super) unit_price: Cny,
    /// `file_id`.
    pub(super) file_id: FileId,
    /// `created_at`.
    pub(super) created_at: DateTime<Utc>,
    /// `attempts`.
    pub(super) attempts: i16,
    /// `fence`.
    pub(super) fence: i64,
    /// From now until `deadline_at` in milliseconds; negative once it has passed.
    pub(super) left_ms: i64,
}

/// The columns of a [`Summary`], for a query of `tasks t`. Never `request`: a page of prompts and references is
/// megabytes.
pub(super) const SUMMARY: &str =
    "t.id, t.account_id, t.status, t.model, t.quality, t.resolution, t.ratio,
    t.unit_price, t.file_id, t.created_at, t.fence, t.ended_at, t.cost, t.images, t.failure";

/// A JSON column, or why it could not be read.
pub(super) struct Parsed<T>(Result<T, BoxDynError>);

/// A row that is no task.
#[derive(Debug, thiserror::Error)]
#[error("tasks.{column} of task {id} cannot be read")]
struct Unreadable {
    id: TaskId,
    column: &'static str,
    #[source]
    source: Option<BoxDynError>,
}

/// The tasks of rows that can be read. The others are logged and left out, so that they stop none of these.
pub(super) fn readable<R, T>(
    rows: Vec<R>,
    read: impl Fn(R) -> sqlx::Result<T>,
) -> impl Iterator<Item = T> {
    let log = |error: &sqlx::Error| {
        tracing::error!(
            error = error as &dyn Error,
            "left a task out: its row cannot be read"
        );
    };
    rows.into_iter()
        .filter_map(move |row| read(row).inspect_err(log).ok())
}

impl TryFrom<Row> for Task {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.id,
            account_id: row.account_id,
            api_key_id: row.api_key_id,
            status: row.status,
            request: row.request.of(row.id, "request")?,
            unit_price: row.unit_price,
            file_id: row.file_id,
            created_at: row.created_at,
            attempts: row.attempts,
            fence: row.fence,
            left: time_left(row.left_ms),
        })
    }
}

/// The time until a deadline. Zero once it has passed.
pub(super) fn time_left(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Reads a row of [`SUMMARY`].
pub(super) fn summary(row: PgRow) -> sqlx::Result<Summary> {
    let row = SummaryRow {
        id: row.try_get("id")?,
        row,
    };
    let status = row.column("status")?;
    let ratio: &str = row.column("ratio")?;
    let ratio = ratio.parse();
    Ok(Summary {
        id: row.id,
        account_id: row.column("account_id")?,
        status,
        model: row.column("model")?,
        quality: row.column("quality")?,
        resolution: row.column("resolution")?,
        ratio: ratio.map_err(|error| unreadable(row.id, "ratio", Some(Box::new(error))))?,
        unit_price: row.column("unit_price")?,
        file_id: row.column("file_id")?,
        created_at: row.column("created_at")?,
        fence: row.column("fence")?,
        end: row.end(status)?,
    })
}

struct SummaryRow {
    id: TaskId,
    row: PgRow,
}

impl SummaryRow {
    fn column<'r, T>(&'r self, column: &str) -> sqlx::Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        self.row.try_get(column)
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> sqlx::Result<T> {
        self.ended::<Parsed<T>>(column)?.of(self.id, column)
    }

    /// A column that every task has once it has ended so.
    fn ended<'r, T>(&'r self, column: &'static str) -> sqlx::Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        let value: Option<T> = self.column(column)?;
        value.ok_or_else(|| unreadable(self.id, column, None))
    }

    /// How the task ended; `None` while it is open.
    fn end(&self, status: Status) -> sqlx::Result<Option<End>> {
        let outcome = match status {
            Status::Queued | Status::Running => return Ok(None),
            Status::Completed => Outcome::Completed(self.json("images")?),
            Status::Failed => Outcome::Failed(self.json("failure")?),
        };
        Ok(Some(End {
            at: self.ended("ended_at")?,
            cost: self.ended("cost")?,
            outcome,
        }))
    }
}

fn unreadable(id: TaskId, column: &'static str, source: Option<BoxDynError>) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(Unreadable { id, column, source }))
}

impl<T> Parsed<T> {
    /// The value, or an error that names the task and the column.
    pub(super) fn of(self, id: TaskId, column: &'static str) -> sqlx::Result<T> {
        self.0.map_err(|error| unreadable(id, column, Some(error)))
    }
}

impl<T: DeserializeOwned> Decode<'_, Postgres> for Parsed<T> {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let json = <Json<T> as Decode<Postgres>>::decode(value);
        Ok(Self(json.map(|json| json.0).map_err(without_values)))
    }
}

/// serde quotes values in its errors, and these may be a prompt, which belongs in no log.
fn without_values(error: BoxDynError) -> BoxDynError {
    match error.downcast_ref::<serde_json::Error>() {
        Some(json) => format!("{:?} error at column {}", json.classify(), json.column()).into(),
        None => error,
    }
}

impl<T> Type<Postgres> for Parsed<T> {
    fn type_info() -> PgTypeInfo {
        <Json<T> as Type<Postgres>>::type_info()
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        <Json<T> as Type<Postgres>>::compatible(found)
    }
}

impl<T> fmt::Debug for Parsed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_quotes_no_value() {
        let error = serde_json::from_str::<u8>("\"a secret bridge\"").unwrap_err();
        assert!(error.to_string().contains("bridge"));
        let reason = without_values(Box::new(error)).to_string();
        assert_eq!(reason, "Data error at column 17");
    }
}
