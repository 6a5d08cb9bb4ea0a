//! What Google's APIs put in an error besides the code and the message: a status and details.

use std::time::Duration;

use serde_json::Value;

/// The status, such as `RESOURCE_EXHAUSTED`, and the reasons, such as `API_KEY_INVALID`.
pub(super) fn names(error: &Value) -> impl Iterator<Item = String> {
    let reasons = details(error).map(|detail| &detail["reason"]);
    std::iter::once(&error["status"])
        .chain(reasons)
        .filter_map(Value::as_str)
        .map(str::to_owned)
}

/// The requested wait, written as `3.29s`.
pub(super) fn retry_delay(error: &Value) -> Option<Duration> {
    let delay = details(error).find_map(|detail| detail["retryDelay"].as_str())?;
    let seconds = delay.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn details(error: &Value) -> impl Iterator<Item = &Value> {
    error["details"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_and_odd_details_are_ignored() {
        let error = json!({"code": 429, "message": "Slow.", "status": "RESOURCE_EXHAUSTED", "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.29s"}]});
        let names: Vec<String> = names(&error).collect();
        assert_eq!(names, ["RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"]);
        assert_eq!(retry_delay(&error), Some(Duration::from_millis(3290)));
        for odd in [
            json!({}),
            json!("no"),
            json!({"details": {"retryDelay": "1s"}}),
            json!({"details": [3, {"retryDelay": 3}]}),
            json!({"details": [{"retryDelay": "-3s"}]}),
            json!({"details": [{"retryDelay": "soon"}]}),
            json!({"details": [{"retryDelay": "1e300s"}]}),
        ] {
            assert_eq!(retry_delay(&odd), None, "{odd}");
        }
    }
}
