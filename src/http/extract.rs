//! Extractors that return our own error bodies: the caller of a request, and parts of its URL.

use std::sync::Arc;

use axum::{
    extract::{FromRef, FromRequestParts, RawPathParams},
    http::{HeaderMap, header, request::Parts},
};
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::{error::ApiError, request::Known};
use crate::{
    accounts::{self, Caller},
    app::App,
    db,
};

/// The caller; 401 without a valid key.
#[derive(Clone, Debug)]
pub(super) struct Authenticated(pub Arc<Caller>);

/// The caller of a request that counts against the key's rate limit; 401 as [`Authenticated`], 429 over the limit.
#[derive(Clone, Debug)]
pub(super) struct Admitted(pub Arc<Caller>);

/// The last path parameter of the route.
pub(super) struct Segment(pub String);

/// The query string; parameters that are not fields of `T` are ignored.
pub(super) struct Query<T>(pub T);

impl<S: Send + Sync> FromRequestParts<S> for Authenticated
where
    App: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let app = App::from_ref(state);
        let Some(key) = presented_key(&parts.headers) else {
            return Err(ApiError::unauthorized(
                "missing API key: send one as `Authorization: Bearer sk_…`",
            ));
        };
        let caller = app.authenticator.authenticate(&key).await?;
        let caller = caller.ok_or_else(|| ApiError::unauthorized("invalid API key"))?;
        if let Some(known) = parts.extensions.get::<Known>() {
            known.set();
        }
        Ok(Self(caller))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admitted
where
    App: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let app = App::from_ref(state);
        let Authenticated(caller) = Authenticated::from_request_parts(parts, state).await?;
        if caller.requests_per_minute.is_some() {
            let wait = async {
                let mut conn = db::acquire(&app.pool).await?;
                accounts::store::count_request(&mut conn, caller.key_id).await
            };
            if let Some(seconds) = app.pool.in_time(wait).await? {
                return Err(ApiError::too_many_requests(seconds));
            }
        }
        Ok(Self(caller))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let last = params
            .ok()
            .and_then(|p| p.iter().last().map(|(_, value)| value.to_owned()));
        last.map(Self).ok_or_else(|| ApiError::not_found("route"))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| {
                ApiError::bad_request(format!("invalid query string: {}", error.body_text()))
            })
    }
}

/// The key in `Authorization` (`Bearer KEY`, with the scheme in any case, or the bare key), or in `x-api-key` or
/// `api-key`, which Anthropic's and Azure's clients use. `None` if two keys differ.
fn presented_key(headers: &HeaderMap) -> Option<SecretString> {
    let mut given = [header::AUTHORIZATION.as_str(), "x-api-key", "api-key"]
        .into_iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(|value| value.to_str().ok())
        .map(bare_key);
    let first = given.next()?;
    given
        .all(|other| other == first)
        .then(|| SecretString::from(first))
}

fn bare_key(value: &str) -> &str {
    let value = value.trim();
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn key(headers: &[(&str, &str)]) -> Option<String> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        presented_key(&headers).map(|key| key.expose_secret().to_owned())
    }

    #[test]
    fn keys_are_accepted_in_every_form_that_clients_send() {
        for value in [
            "Bearer sk_x",
            "bearer sk_x",
            "BEARER   sk_x ",
            "sk_x",
            " sk_x",
        ] {
            assert_eq!(
                key(&[("authorization", value)]).as_deref(),
                Some("sk_x"),
                "{value:?}"
            );
        }
        assert_eq!(key(&[("x-api-key", "sk_x")]).as_deref(), Some("sk_x"));
        assert_eq!(
            key(&[("api-key", "sk_x"), ("authorization", "Bearer sk_x")]).as_deref(),
            Some("sk_x")
        );
        assert_eq!(
            key(&[
                ("authorization", "Bearer sk_x"),
                ("authorization", "Bearer sk_y")
            ]),
            None
        );
        assert_eq!(key(&[]), None);
    }
}
