//! Rows of `tasks` as tasks. A row can be unreadable: another version of the program may have written it.

use std::{error::Error, fmt, time::Duration};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::{
    Decode, Postgres, Type,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueRef},
    types::Json,
};

use crate::{
    ids::{AccountId, FileId, KeyId, TaskId},
    image::{Quality, Resolution},
    money::Cny,
    tasks::{End, Failure, Image, Outcome, Request, Status, Summary, Task},
};

/// The columns of a [`Task`].
pub(super) struct Row {
    pub(super) id: TaskId,
    pub(super) account_id: AccountId,
    pub(super) api_key_id: KeyId,
    pub(super) status: Status,
    pub(super) request: Parsed<Request>,
    pub(super) unit_price: Cny,
    pub(super) file_id: FileId,
    pub(super) created_at: DateTime<Utc>,
    pub(super) attempts: i16,
    pub(super) fence: i64,
    pub(super) left_ms: i64,
    pub(super) ended_at: Option<DateTime<Utc>>,
    pub(super) cost: Option<Cny>,
    pub(super) images: Option<Parsed<Vec<Image>>>,
    pub(super) failure: Option<Parsed<Failure>>,
}

/// The columns of a [`Summary`]. Never `request`: a page of prompts and references is megabytes.
pub(super) struct SummaryRow {
    pub(super) id: TaskId,
    pub(super) account_id: AccountId,
    pub(super) status: Status,
    pub(super) model: String,
    pub(super) quality: Quality,
    pub(super) resolution: Resolution,
    pub(super) ratio: String,
    pub(super) unit_price: Cny,
    pub(super) file_id: FileId,
    pub(super) created_at: DateTime<Utc>,
    pub(super) fence: i64,
    pub(super) ended_at: Option<DateTime<Utc>>,
    pub(super) cost: Option<Cny>,
    pub(super) images: Option<Parsed<Vec<Image>>>,
    pub(super) failure: Option<Parsed<Failure>>,
}

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
pub(super) fn readable<R, T>(rows: Vec<R>) -> Vec<T>
where
    T: TryFrom<R, Error = sqlx::Error>,
{
    let tasks = rows.into_iter().filter_map(|row| {
        let log = |error: &sqlx::Error| {
            tracing::error!(
                error = error as &dyn Error,
                "left a task out: its row cannot be read"
            );
        };
        T::try_from(row).inspect_err(log).ok()
    });
    tasks.collect()
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
            // Negative past the deadline.
            left: Duration::from_millis(u64::try_from(row.left_ms).unwrap_or(0)),
            end: end(
                row.id,
                row.status,
                row.ended_at,
                row.cost,
                row.images,
                row.failure,
            )?,
        })
    }
}

impl TryFrom<SummaryRow> for Summary {
    type Error = sqlx::Error;

    fn try_from(row: SummaryRow) -> sqlx::Result<Self> {
        let ratio = row.ratio.parse();
        Ok(Self {
            id: row.id,
            account_id: row.account_id,
            status: row.status,
            model: row.model,
            quality: row.quality,
            resolution: row.resolution,
            ratio: ratio.map_err(|error| unreadable(row.id, "ratio", Some(Box::new(error))))?,
            unit_price: row.unit_price,
            file_id: row.file_id,
            created_at: row.created_at,
            fence: row.fence,
            end: end(
                row.id,
                row.status,
                row.ended_at,
                row.cost,
                row.images,
                row.failure,
            )?,
        })
    }
}

/// How a task ended; `None` while it is open.
fn end(
    id: TaskId,
    status: Status,
    at: Option<DateTime<Utc>>,
    cost: Option<Cny>,
    images: Option<Parsed<Vec<Image>>>,
    failure: Option<Parsed<Failure>>,
) -> sqlx::Result<Option<End>> {
    let missing = |column| unreadable(id, column, None);
    let outcome = match status {
        Status::Queued | Status::Running => return Ok(None),
        Status::Completed => {
            let images = images.ok_or_else(|| missing("images"))?;
            Outcome::Completed(images.of(id, "images")?)
        }
        Status::Failed => {
            let failure = failure.ok_or_else(|| missing("failure"))?;
            Outcome::Failed(failure.of(id, "failure")?)
        }
    };
    Ok(Some(End {
        at: at.ok_or_else(|| missing("ended_at"))?,
        cost: cost.ok_or_else(|| missing("cost"))?,
        outcome,
    }))
}

fn unreadable(id: TaskId, column: &'static str, source: Option<BoxDynError>) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(Unreadable { id, column, source }))
}

impl<T> Parsed<T> {
    fn of(self, id: TaskId, column: &'static str) -> sqlx::Result<T> {
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
