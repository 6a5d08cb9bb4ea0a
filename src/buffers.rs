//! Memory for request bodies that are held: a total allowance, and a share of it for each account.
//! Requests never wait for memory: a request over the limit is refused at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::ids::AccountId;

/// The memory that all held bodies may occupy together. Cheap to clone.
#[derive(Clone)]
pub struct Buffers(Arc<Inner>);

struct Inner {
    bytes_max: usize,
    account_bytes_max: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    all: usize,
    /// Only accounts that hold any bytes.
    accounts: HashMap<AccountId, usize>,
}

/// The bytes that one request holds. Returned on drop.
pub struct Share {
    buffers: Buffers,
    account_id: AccountId,
    bytes: usize,
}

/// Why a share cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The account's limit is reached.
    #[error("this account's request bodies hold {bytes_max} bytes of memory, as much as they may")]
    Account {
        /// The account's limit.
        bytes_max: usize,
    },
    /// The limit for all accounts is reached.
    #[error("too many large request bodies at once")]
    All,
}

impl Buffers {
    /// An allowance of `bytes_max` in all and `account_bytes_max` for each account.
    pub fn new(bytes_max: usize, account_bytes_max: usize) -> Self {
        Self(Arc::new(Inner {
            bytes_max,
            account_bytes_max,
            used: Mutex::default(),
        }))
    }

    /// Returns an empty share for a request of this account.
    pub fn share(&self, account_id: AccountId) -> Share {
        Share {
            buffers: self.clone(),
            account_id,
            bytes: 0,
        }
    }

    /// How many bytes are held in all.
    pub fn held(&self) -> usize {
        self.used().all
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Grows the share to `bytes` in all; a share that is larger stays as it is.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let limits = &self.buffers.0;
        let mut used = self.buffers.used();
        let account = used
            .accounts
            .get(&self.account_id)
            .copied()
            .unwrap_or_default();
        if account + more > limits.account_bytes_max {
            let bytes_max = limits.account_bytes_max;
            return Err(Exhausted::Account { bytes_max });
        }
        if used.all + more > limits.bytes_max {
            return Err(Exhausted::All);
        }
        used.all += more;
        used.accounts.insert(self.account_id, account + more);
        drop(used);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.buffers.used();
        used.all -= self.bytes;
        if let Some(account) = used.accounts.get_mut(&self.account_id) {
            *account -= self.bytes;
            if *account == 0 {
                used.accounts.remove(&self.account_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    #[test]
    fn an_account_cannot_exceed_its_share() {
        let buffers = Buffers::new(100, 40);
        let (greedy, other, third) = (row_id(), row_id(), row_id());
        let mut first = buffers.share(greedy);
        let mut second = buffers.share(greedy);
        assert_eq!(first.grow_to(30), Ok(()));
        assert_eq!(first.grow_to(20), Ok(()));
        let exhausted = Err(Exhausted::Account { bytes_max: 40 });
        assert_eq!(second.grow_to(11), exhausted);
        assert_eq!(second.grow_to(10), Ok(()));
        let mut others = [other, third].map(|account| buffers.share(account));
        assert_eq!(others[0].grow_to(40), Ok(()));
        assert_eq!(others[1].grow_to(21), Err(Exhausted::All));
        drop(first);
        assert_eq!(others[1].grow_to(40), Ok(()));
        drop((second, others));
        assert!(buffers.used().accounts.is_empty());
        assert_eq!(buffers.used().all, 0);
    }
}
