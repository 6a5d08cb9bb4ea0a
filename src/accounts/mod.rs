//! Accounts, which pay, and API keys, which make requests: who a caller is and what its key allows.

pub mod keys;
pub mod store;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;
use secrecy::SecretString;

use crate::{
    config::InlineImages,
    db,
    ids::{AccountId, KeyId},
};
use keys::KeyHash;

/// How long a known or unknown key is cached without asking the database. Every hold checks anew
/// what the key may spend, so this affects only requests that cost nothing.
const KNOWN_FOR: Duration = Duration::from_secs(10);
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
const CACHED_KEYS_MAX: usize = 10_000;

/// Who makes a request, as identified by the API key.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account that pays.
    pub account_id: AccountId,
    /// The key that was presented.
    pub key_id: KeyId,
    /// `None`: no limit.
    pub requests_per_minute: Option<u32>,
    /// `None`: no limit.
    pub concurrent_requests: Option<u32>,
    /// `None`: use the configured default.
    pub inline_images: Option<InlineImages>,
}

/// Identifies callers by their keys and caches the result for a few seconds.
#[derive(Clone)]
pub struct Authenticator {
    pool: db::Pool,
    seen: Arc<Cache<KeyHash, Seen>>,
}

#[derive(Clone)]
struct Seen {
    caller: Option<Arc<Caller>>,
    at: Instant,
}

impl Authenticator {
    /// An authenticator with an empty cache.
    pub fn new(pool: db::Pool) -> Self {
        Self {
            pool,
            seen: Arc::new(Cache::new(CACHED_KEYS_MAX)),
        }
    }

    /// Returns the caller of a presented key, or `None` if the key is malformed, unknown, revoked
    /// or expired, or its account is disabled. Errors if the database cannot be queried.
    pub async fn authenticate(
        &self,
        presented: &SecretString,
    ) -> sqlx::Result<Option<Arc<Caller>>> {
        let Some(hash) = keys::authenticate(presented) else {
            return Ok(None);
        };
        if let Some(seen) = self.seen.get(&hash).filter(Seen::is_fresh) {
            return Ok(seen.caller);
        }
        let caller = async { store::caller(&mut *db::acquire(&self.pool).await?, &hash).await };
        let caller = self.pool.in_time(caller).await?.map(Arc::new);
        self.seen.insert(
            hash,
            Seen {
                caller: caller.clone(),
                at: Instant::now(),
            },
        );
        Ok(caller)
    }
}

impl Seen {
    fn is_fresh(&self) -> bool {
        let good_for = if self.caller.is_some() {
            KNOWN_FOR
        } else {
            UNKNOWN_FOR
        };
        self.at.elapsed() < good_for
    }
}
