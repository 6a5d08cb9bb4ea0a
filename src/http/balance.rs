//! `GET /v1/balance`: the account's balance, in our field names and in those of `APIMart`'s clients.

use axum::{extract::State, response::Response};
use serde_json::json;

use super::{error::ApiError, extract::Authenticated, page};
use crate::{accounts, app::App};

/// The balance, hold and monthly figures of the caller's account.
pub(super) async fn get(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
) -> Result<Response, ApiError> {
    let zone = &app.config.billing.time_zone;
    let account = async {
        let mut conn = app.pool.acquire().await?;
        accounts::store::get(&mut conn, caller.account_id, zone).await
    };
    let account = app.pool.in_time(account).await?;
    let account = account.ok_or_else(|| ApiError::not_found("account"))?;
    let available = account.balance - account.held;
    Ok(page::json(&json!({
        "currency": "CNY",
        "balance": account.balance,
        "held": account.held,
        "available": available,
        "month_spend": account.month_spend,
        "monthly_quota": account.monthly_quota,
        "success": true,
        "remain_balance": available,
        "used_balance": account.spent,
        "unlimited_quota": false,
    })))
}
