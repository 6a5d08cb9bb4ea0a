//! Transactions that end with their owner. sqlx's own are not used: if its `begin()` is cancelled, the connection returns
//! to the pool with an open transaction, and what is written on it later is lost (transact-rs/sqlx #4385).

use std::ops::{Deref, DerefMut};

use sqlx::{Executor, PgConnection, PgPool, Postgres, pool::PoolConnection};

use super::pool::{Patience, acquire};

/// An open transaction. Dropping it closes its connection, and the server rolls back.
pub struct Transaction {
    conn: PoolConnection<Postgres>,
    /// Whether the server has ended it.
    has_ended: bool,
}

/// Begins a transaction.
pub async fn begin(pool: &PgPool, patience: Patience) -> sqlx::Result<Transaction> {
    let mut tx = Transaction {
        conn: acquire(pool).await?,
        has_ended: false,
    };
    // One round trip, like BEGIN alone.
    tx.execute(match patience {
        Patience::Little => "BEGIN; SET LOCAL lock_timeout = '250ms'",
        Patience::Much => "BEGIN",
    })
    .await?;
    Ok(tx)
}

impl Transaction {
    /// Commits. After an error, the transaction may have been committed nevertheless.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.end("COMMIT").await
    }

    /// Undoes everything.
    pub async fn rollback(self) -> sqlx::Result<()> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, statement: &'static str) -> sqlx::Result<()> {
        self.execute(statement).await?;
        self.has_ended = true;
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.has_ended {
            self.conn.close_on_drop();
        }
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}
