//! Limits how often one client address may present invalid keys and links. Only such failures count, and only
//! they are refused: requests with valid keys and links from the same address are not affected.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use ipnet::IpNet;

use super::{address, error::ApiError, request::connection};
use crate::config;

/// The routes whose URL is the credential.
const LINKS: [&str; 3] = [
    "/f/image/{name}",
    "/f/object/{*path}",
    "/v1/images/files/{*path}",
];
/// Maximum number of addresses tracked separately; further addresses share one allowance.
const ADDRESSES_MAX: usize = 65_536;
/// Number of failures between two sweeps, which remove addresses whose allowance is full again.
const FAILURES_TO_SWEEP: u32 = 1_024;

/// The failures of each client address.
pub(super) struct Failures {
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    counted: AtomicU32,
    proxies: Vec<IpNet>,
}

impl Failures {
    /// Allows `failures_per_minute_max` failures per address and minute.
    pub(super) fn new(limits: &config::Server) -> Self {
        let per_minute = NonZeroU32::new(limits.failures_per_minute_max);
        Self {
            limiter: RateLimiter::keyed(Quota::per_minute(per_minute.unwrap_or(NonZeroU32::MIN))),
            counted: AtomicU32::new(0),
            proxies: limits.trusted_proxies.clone(),
        }
    }

    /// Counts one failure. Over the limit, errors with the seconds until the next failure is allowed.
    fn count(&self, client: IpAddr) -> Result<(), u32> {
        let counted = self.counted.fetch_add(1, Ordering::Relaxed);
        if counted.is_multiple_of(FAILURES_TO_SWEEP) {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        let shared = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let is_full = self.limiter.len() >= ADDRESSES_MAX;
        let key = if is_full {
            shared
        } else {
            address::share(client)
        };
        self.limiter.check_key(&key).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            u32::try_from(wait.as_millis().div_ceil(1000)).map_or(u32::MAX, |s| s.max(1))
        })
    }
}

/// Middleware: replaces a failure response with 429 for an address over its limit.
pub(super) async fn limit(
    State(failures): State<Arc<Failures>>,
    request: Request,
    next: Next,
) -> Response {
    let connection = connection(&request);
    let client =
        connection.and_then(|one| address::client(one.peer, request.headers(), &failures.proxies));
    let route = request.extensions().get::<MatchedPath>();
    let is_link = route.is_some_and(|route| LINKS.contains(&route.as_str()));
    let response = next.run(request).await;
    let has_failed = match response.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::NOT_FOUND => is_link,
        _ => false,
    };
    match client.filter(|_| has_failed).map(|it| failures.count(it)) {
        Some(Err(seconds)) => ApiError::too_many_requests(seconds).into_response(),
        Some(Ok(())) | None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(per_minute: u32) -> Failures {
        let quota = Quota::per_minute(NonZeroU32::new(per_minute).unwrap());
        Failures {
            limiter: RateLimiter::keyed(quota),
            counted: AtomicU32::new(0),
            proxies: Vec::new(),
        }
    }

    #[test]
    fn each_address_has_its_own_allowance_and_an_ipv6_64_shares_one() {
        let failures = failures(2);
        let count = |address: &str| failures.count(address.parse().unwrap());
        assert_eq!(count("2001:db8::1"), Ok(()));
        assert_eq!(count("2001:db8::2"), Ok(()));
        assert_eq!(count("2001:db8::3"), Err(30));
        assert_eq!(count("192.0.2.1"), Ok(()));
    }

    #[test]
    fn the_number_of_tracked_addresses_is_limited() {
        let failures = failures(2);
        let tracked = u32::try_from(ADDRESSES_MAX).unwrap();
        for address in 0..tracked + 1_000 {
            assert_eq!(
                failures
                    .count(IpAddr::V4((0x0a00_0000 + address).into()))
                    .is_ok(),
                address < tracked + 2
            );
        }
        assert!(failures.limiter.len() <= ADDRESSES_MAX + 1);
        assert!(failures.count("192.0.2.1".parse().unwrap()).is_err());
    }
}
