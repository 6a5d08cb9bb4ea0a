//! Connections that loops keep between their batches. Taking one from the pool and giving it back costs round trips.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use tokio::time::Instant;

/// A loop that keeps a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Accepts requests.
    Submit,
    /// Ends tasks.
    Settle,
    /// Looks up tasks that clients poll.
    Poll,
}

/// The connections that are kept at present.
#[derive(Default)]
pub(super) struct Kept([Slot; 3]);

/// A kept connection, and since when it has not been used.
type Slot = Mutex<Option<(PoolConnection<Postgres>, Instant)>>;

/// A connection in use by a loop. Goes to the pool unless it is kept.
pub struct KeptConnection<'a> {
    conn: PoolConnection<Postgres>,
    slot: &'a Slot,
}

impl Kept {
    pub(super) fn take(&self, keeper: Keeper) -> Option<(PoolConnection<Postgres>, Instant)> {
        lock(self.slot(keeper)).take()
    }

    pub(super) fn lend(
        &self,
        keeper: Keeper,
        conn: PoolConnection<Postgres>,
    ) -> KeptConnection<'_> {
        let slot = self.slot(keeper);
        KeptConnection { conn, slot }
    }

    /// Gives all to the pool.
    pub(super) fn clear(&self) {
        for slot in &self.0 {
            drop(lock(slot).take());
        }
    }

    fn slot(&self, keeper: Keeper) -> &Slot {
        &self.0[keeper as usize]
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // sqlx would return them to the pool on a task, for which there may be no runtime any more.
        for slot in &self.0 {
            let kept = lock(slot).take();
            drop(kept.map(|(conn, _)| conn.detach()));
        }
    }
}

impl KeptConnection<'_> {
    /// Keeps it for the loop's next batch, after work that is complete.
    pub fn keep(self) {
        let kept = (self.conn, Instant::now());
        drop(lock(self.slot).replace(kept));
    }
}

impl Deref for KeptConnection<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for KeptConnection<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

fn lock<T>(slot: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
