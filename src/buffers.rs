//! Memory for request bodies that are held: one allowance for all, and of it a share for each account.
//! Nobody waits for memory: whoever finds it used up is told so at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::ids::AccountId;

/// The memory that held bodies may take together. Cheap to clone.
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
    /// Of the accounts that hold any.
    accounts: HashMap<AccountId, usize>,
}

/// What one request holds of it. Given back when it is dropped.
pub struct Share {
    buffers: Buffers,
    account_id: AccountId,
    bytes: usize,
}

/// Why a share cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    #[error("this account's request bodies hold {bytes_max} bytes of memory, as much as they may")]
    Account { bytes_max: usize },
    #[error("too many large request bodies at once")]
    All,
}

impl Buffers {
    pub fn new(bytes_max: usize, account_bytes_max: usize) -> Self {
        Self(Arc::new(Inner {
            bytes_max,
            account_bytes_max,
            used: Mutex::default(),
        }))
    }

    /// A share that holds nothing yet.
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
    /// Grows to so many bytes, unless it has them already.
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
    fn an_account_has_its_share_and_leaves_the_rest_to_others() {
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
