//! Conditional and range requests (RFC 9110, sections 13 and 14): validators, and a single byte range.

use std::{ops::Range, time::SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use chrono::{DateTime, Utc};

/// Which part of an object to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RangeOutcome {
    /// The whole object (200).
    Whole,
    /// A non-empty range of bytes (206).
    Part(Range<u64>),
    /// The client already has the object (304).
    NotModified,
    /// The range lies outside the object (416).
    Unsatisfiable,
}

/// Evaluates the conditional and range headers of a request for an object of `size` bytes.
pub(super) fn evaluate(
    headers: &HeaderMap,
    etag: &str,
    modified: DateTime<Utc>,
    size: u64,
) -> RangeOutcome {
    let modified = truncate(modified);
    if not_modified(headers, etag, modified) {
        return RangeOutcome::NotModified;
    }
    let Some(range) =
        text(headers, &header::RANGE).filter(|_| range_holds(headers, etag, modified))
    else {
        return RangeOutcome::Whole;
    };
    match parse(range, size) {
        Parsed::Ignored => RangeOutcome::Whole,
        Parsed::Outside => RangeOutcome::Unsatisfiable,
        Parsed::Within(range) => RangeOutcome::Part(range),
    }
}

/// The `Content-Range` header of the response, if the outcome has one.
pub(super) fn content_range(outcome: &RangeOutcome, size: u64) -> Option<HeaderValue> {
    let text = match outcome {
        RangeOutcome::Part(range) => format!("bytes {}-{}/{size}", range.start, range.end - 1),
        RangeOutcome::Unsatisfiable => format!("bytes */{size}"),
        RangeOutcome::Whole | RangeOutcome::NotModified => return None,
    };
    HeaderValue::try_from(text).ok()
}

fn not_modified(headers: &HeaderMap, etag: &str, modified: SystemTime) -> bool {
    if let Some(known) = text(headers, &header::IF_NONE_MATCH) {
        return known
            .split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag == etag);
    }
    date(headers, &header::IF_MODIFIED_SINCE).is_some_and(|since| modified <= since)
}

/// Whether `If-Range` permits a range of the object's current version.
fn range_holds(headers: &HeaderMap, etag: &str, modified: SystemTime) -> bool {
    match text(headers, &header::IF_RANGE) {
        None => true,
        Some(tag) if tag.starts_with('"') => tag == etag,
        Some(date) => httpdate::parse_http_date(date).is_ok_and(|date| date == modified),
    }
}

enum Parsed {
    /// Not a byte range, or several ranges: sending the whole object is valid for both.
    Ignored,
    Outside,
    Within(Range<u64>),
}

fn parse(range: &str, size: u64) -> Parsed {
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .and_then(|r| r.trim().split_once('-'))
    else {
        return Parsed::Ignored;
    };
    let bounds = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Parsed::Ignored,
    };
    if bounds.start < bounds.end {
        Parsed::Within(bounds)
    } else {
        Parsed::Outside
    }
}

/// HTTP dates have whole seconds.
fn truncate(time: DateTime<Utc>) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_with(headers: &[(HeaderName, &str)]) -> RangeOutcome {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        evaluate(
            &headers,
            "\"e\"",
            DateTime::from_timestamp(1_743_436_800, 500).unwrap(),
            100,
        )
    }

    #[test]
    fn a_single_byte_range_is_served() {
        for (range, expected) in [
            ("bytes=0-9", RangeOutcome::Part(0..10)),
            ("bytes=90-", RangeOutcome::Part(90..100)),
            ("bytes=-10", RangeOutcome::Part(90..100)),
            ("bytes=-1000", RangeOutcome::Part(0..100)),
            ("bytes=50-1000", RangeOutcome::Part(50..100)),
            ("bytes=100-", RangeOutcome::Unsatisfiable),
            ("bytes=-0", RangeOutcome::Unsatisfiable),
            ("bytes=5-2", RangeOutcome::Whole),
            ("bytes=0-1,5-6", RangeOutcome::Whole),
            ("lines=0-9", RangeOutcome::Whole),
            (
                "bytes=18446744073709551615-18446744073709551615",
                RangeOutcome::Unsatisfiable,
            ),
        ] {
            assert_eq!(outcome_with(&[(header::RANGE, range)]), expected, "{range}");
        }
    }

    #[test]
    fn validators_are_evaluated() {
        let date = "Mon, 31 Mar 2025 16:00:00 GMT";
        assert_eq!(
            outcome_with(&[(header::IF_NONE_MATCH, "\"x\", W/\"e\"")]),
            RangeOutcome::NotModified
        );
        assert_eq!(
            outcome_with(&[(header::IF_NONE_MATCH, "\"x\"")]),
            RangeOutcome::Whole
        );
        assert_eq!(
            outcome_with(&[(header::IF_MODIFIED_SINCE, date)]),
            RangeOutcome::NotModified
        );
        let range = (header::RANGE, "bytes=0-0");
        assert_eq!(
            outcome_with(&[range.clone(), (header::IF_RANGE, "\"e\"")]),
            RangeOutcome::Part(0..1)
        );
        assert_eq!(
            outcome_with(&[range.clone(), (header::IF_RANGE, "\"x\"")]),
            RangeOutcome::Whole
        );
        assert_eq!(
            outcome_with(&[range, (header::IF_RANGE, date)]),
            RangeOutcome::Part(0..1)
        );
    }
}
