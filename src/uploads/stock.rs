//! How much of storage the uploads of each account take. The sum is read now and then and counted on in
//! between, so what other replicas take in is known some seconds later: an account may go over its limit
//! by what it can send to them in that time.

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

/// How long a sum is counted on; and when it is read again for who would be refused by it.
const KNOWN_FOR: Duration = Duration::from_secs(10);
const REFUSED_FOR: Duration = Duration::from_secs(1);
const ACCOUNTS_MAX: usize = 10_000;

/// What uploads take, account by account.
pub struct Stock {
    account_bytes_max: u64,
    known: Cache<AccountId, Arc<Known>>,
}

struct Known {
    bytes: AtomicU64,
    read_at: Instant,
}

/// Why bytes were not put to an account's.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    #[error("this account's uploads hold {bytes} bytes, allowed are {bytes_max}")]
    Full { bytes: u64, bytes_max: u64 },
    #[error("the uploads of an account could not be counted")]
    Database(#[from] sqlx::Error),
}

impl Stock {
    pub fn new(account_bytes_max: u64) -> Self {
        Self {
            account_bytes_max,
            known: Cache::new(ACCOUNTS_MAX),
        }
    }

    /// Whether anything more may be stored for an account.
    pub async fn check(&self, pool: &db::Pool, account_id: AccountId) -> Result<(), StockError> {
        self.with_room(pool, account_id, 1).await.map(drop)
    }

    /// Counts bytes that are about to be noted in the database, if they fit.
    pub async fn add(
        &self,
        pool: &db::Pool,
        account_id: AccountId,
        bytes: u64,
    ) -> Result<(), StockError> {
        let known = self.with_room(pool, account_id, bytes).await?;
        known.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn with_room(
        &self,
        pool: &db::Pool,
        account_id: AccountId,
        more: u64,
    ) -> Result<Arc<Known>, StockError> {
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
        Err(StockError::Full { bytes, bytes_max })
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
