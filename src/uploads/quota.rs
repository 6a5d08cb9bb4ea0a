//! How many bytes each account's uploads occupy. The sum is cached and updated in memory, so
//! uploads through other replicas count some seconds later: an account may exceed its limit by what
//! it sends to them in that time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

use super::store;
use crate::{db, ids::AccountId};

/// How long a cached sum is used, and how long if it would refuse an upload.
const KNOWN_FOR: Duration = Duration::from_secs(10);
const REFUSED_FOR: Duration = Duration::from_secs(1);
const ACCOUNTS_MAX: usize = 10_000;

/// The bytes that each account's uploads occupy.
pub struct StorageQuota {
    account_bytes_max: u64,
    known: Cache<AccountId, Arc<Known>>,
}

struct Known {
    bytes: AtomicU64,
    read_at: Instant,
}

/// Why an upload does not fit.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// The account's limit is reached.
    #[error("this account's uploads hold {bytes} bytes, allowed are {bytes_max}")]
    Full {
        /// What the account's uploads hold.
        bytes: u64,
        /// The account's limit.
        bytes_max: u64,
    },
    /// The database could not be queried.
    #[error("the uploads of an account could not be counted")]
    Database(#[from] sqlx::Error),
}

impl StorageQuota {
    /// A quota with this limit for each account, in bytes.
    pub fn new(account_bytes_max: u64) -> Self {
        Self {
            account_bytes_max,
            known: Cache::new(ACCOUNTS_MAX),
        }
    }

    /// Checks that an account may store at least one more byte.
    pub async fn check(&self, pool: &db::Pool, account_id: AccountId) -> Result<(), QuotaError> {
        self.require_capacity(pool, account_id, 1).await.map(drop)
    }

    /// Counts bytes that are about to be recorded in the database, if they fit.
    pub async fn add(
        &self,
        pool: &db::Pool,
        account_id: AccountId,
        bytes: u64,
    ) -> Result<(), QuotaError> {
        let known = self.require_capacity(pool, account_id, bytes).await?;
        known.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn require_capacity(
        &self,
        pool: &db::Pool,
        account_id: AccountId,
        more: u64,
    ) -> Result<Arc<Known>, QuotaError> {
        let bytes_max = self.account_bytes_max;
        let fits = |known: &Known| known.bytes.load(Ordering::Relaxed) + more <= bytes_max;
        let good_for = |known: &Known| if fits(known) { KNOWN_FOR } else { REFUSED_FOR };
        let known = self.known.get(&account_id);
        let known = match known.filter(|known| known.read_at.elapsed() < good_for(known)) {
            Some(known) => known,
            None => self.read(pool, account_id).await?,
        };
        if fits(&known) {
            return Ok(known);
        }
        let bytes = known.bytes.load(Ordering::Relaxed);
        Err(QuotaError::Full { bytes, bytes_max })
    }

    async fn read(&self, pool: &db::Pool, account_id: AccountId) -> sqlx::Result<Arc<Known>> {
        let read_at = Instant::now();
        let bytes = async { store::stored_bytes(&mut *db::acquire(pool).await?, account_id).await };
        let bytes = pool.in_time(bytes).await?;
        let known = Arc::new(Known {
            bytes: AtomicU64::new(bytes.unsigned_abs()),
            read_at,
        });
        self.known.insert(account_id, Arc::clone(&known));
        Ok(known)
    }
}
