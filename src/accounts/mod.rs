//! Accounts, which pay, and API keys, which ask: who a caller is and what its key allows.

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

/// How long a key is taken as good, or as unknown, without asking again. What a key may spend is
/// asked anew at every hold, so this bounds only what costs nothing.
const KNOWN_FOR: Duration = Duration::from_secs(10);
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
const CACHED_KEYS_MAX: usize = 10_000;

/// Who asks, as its key says.
#[derive(Clone, Debug)]
pub struct Caller {
    pub account_id: AccountId,
    pub key_id: KeyId,
    pub requests_per_minute: Option<u32>,
    pub concurrent_requests: Option<u32>,
    /// `None`: as the configuration says.
    pub inline_images: Option<InlineImages>,
}

/// Recognises callers by their keys, and remembers them for some seconds.
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
    pub fn new(pool: db::Pool) -> Self {
        Self {
            pool,
            seen: Arc::new(Cache::new(CACHED_KEYS_MAX)),
        }
    }

    /// The caller that a presented key belongs to; `None` if the key is malformed, unknown, revoked
    /// or expired, or its account disabled.
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
