//! A cancelled `begin()` must not discard what is written later through the pool.

use std::{
    future::{Future, poll_fn},
    ops::DerefMut,
    pin::pin,
    task::Poll,
};

use easel::db::{self, Patience};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};

use crate::harness::{self, database::TestDatabase};

/// As many as the pools of the harness have.
const CONNECTIONS: u32 = 8;
const ROUNDS: i64 = 400;
/// A cancelled future is polled at most this often: `BEGIN` and the INSERT wait for the server twice.
const POLLS_MAX: i64 = 6;

/// Polls a future a few times and drops it, as a handler is when its client hangs up.
async fn cancel_after(polls: i64, future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if polled.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Writes in a transaction that it never ends.
async fn unfinished<T: DerefMut<Target = PgConnection>>(
    begin: impl Future<Output = sqlx::Result<T>>,
) {
    // The server may refuse a connection while many are replaced at once.
    let Ok(mut tx) = begin.await else { return };
    sqlx::query("INSERT INTO written VALUES (-1)")
        .execute(&mut *tx)
        .await
        .unwrap();
    std::future::pending::<()>().await;
}

/// Cancels transactions between single INSERTs. Returns how many acknowledged rows are missing.
async fn lost<T: DerefMut<Target = PgConnection>>(
    database: &TestDatabase,
    pool: PgPool,
    begin: impl AsyncFn(&PgPool) -> sqlx::Result<T>,
) -> i64 {
    sqlx::query("CREATE TABLE written (id bigint)")
        .execute(&pool)
        .await
        .unwrap();
    // Opens all connections first, so that none is cancelled while it is being opened.
    let opening = (0..CONNECTIONS).map(|_| pool.acquire());
    drop(futures_util::future::join_all(opening).await);
    let cancelling = async {
        for round in 0..ROUNDS {
            let cancelled = (1..=POLLS_MAX).map(|polls| {
                cancel_after((polls + round) % POLLS_MAX + 1, unfinished(begin(&pool)))
            });
            futures_util::future::join_all(cancelled).await;
        }
    };
    let writing = async {
        let mut acknowledged = 0;
        for id in 0..ROUNDS {
            let written = sqlx::query("INSERT INTO written VALUES ($1)").bind(id);
            acknowledged += i64::from(written.execute(&pool).await.is_ok());
        }
        acknowledged
    };
    let ((), acknowledged) = tokio::join!(cancelling, writing);
    assert!(acknowledged > ROUNDS / 2, "{acknowledged}");
    pool.close().await;
    let mut conn = database.connect().await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM written WHERE id >= 0")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let unfinished: i64 = sqlx::query_scalar("SELECT count(*) FROM written WHERE id < 0")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(unfinished, 0, "a cancelled transaction was committed");
    acknowledged - kept
}

#[tokio::test]
async fn no_acknowledged_row_is_lost_to_cancelled_transactions() {
    let database = TestDatabase::create().await;
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(&dir, "", &[]);
    let pool = easel::db::open(database.options(), &config.database)
        .await
        .unwrap();
    let begin = async |pool: &PgPool| db::begin(pool, Patience::Much).await;
    assert_eq!(lost(&database, PgPool::clone(&pool), begin).await, 0);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "shows why it is disallowed")]
async fn without_the_fix_the_same_test_loses_rows() {
    let database = TestDatabase::create().await;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        .connect_with(database.options())
        .await
        .unwrap();
    let lost = lost(&database, pool, async |pool: &PgPool| pool.begin().await).await;
    assert!(lost > 0, "sqlx is cured: src/db/transaction.rs can go");
}
