//! Paginated lists in the format of OpenAI's API, and JSON responses.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::ids::TaskId;

const LIMIT_DEFAULT: u8 = 20;
const LIMIT_MAX: u8 = 100;

/// The pagination parameters of a query string, not yet validated.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<String>,
    after: Option<String>,
}

/// The number of items per page, from 1 to 100.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(u8);

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl Page {
    /// The page size, 20 by default; 400 unless it is an integer from 1 to 100.
    pub(super) fn limit(&self) -> Result<Limit, ApiError> {
        let given = match &self.limit {
            None => Some(LIMIT_DEFAULT),
            Some(text) => text.trim().parse().ok(),
        };
        given
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .map(Limit)
            .ok_or_else(|| {
                ApiError::field(
                    "limit",
                    format!("limit must be an integer from 1 to {LIMIT_MAX}"),
                )
            })
    }

    /// The id of the task that the page starts after; 400 if it is not a UUID.
    pub(super) fn after(&self, what: &str) -> Result<Option<TaskId>, ApiError> {
        let invalid = |_| ApiError::field("after", format!("after must be the id of a {what}"));
        self.after
            .as_deref()
            .map(|text| text.trim().parse().map_err(invalid))
            .transpose()
    }
}

impl Limit {
    /// The page size plus one: the extra row shows whether there is another page.
    pub(super) fn and_one(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Renders rows that were read with [`Limit::and_one`].
    pub(super) fn list<T, R: Serialize>(
        self,
        mut rows: Vec<T>,
        id: impl Fn(&T) -> String,
        render: impl Fn(&T) -> R,
    ) -> Response {
        let has_more = rows.len() > usize::from(self.0);
        rows.truncate(usize::from(self.0));
        json(&List {
            object: "list",
            first_id: rows.first().map(&id),
            last_id: rows.last().map(&id),
            data: rows.iter().map(render).collect(),
            has_more,
        })
    }
}

/// A JSON response with `no-store`: every response can change or is for one caller only. 500 if the body has no JSON.
pub(super) fn json(body: &impl Serialize) -> Response {
    let text = match serde_json::to_vec(body) {
        Ok(text) => text,
        Err(error) => {
            return ApiError::internal("the response could not be written", &error).into_response();
        }
    };
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
