//! A cancelled `begin()` must not discard what is written later through the pool.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use sqlx::{PgPool, postgres::PgPoolOptions};

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

async fn unfinished(pool: &PgPool) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO written VALUES (-1)")
        .execute(&mut *tx)
        .await
        .unwrap();
    std::future::pending::<()>().await;
}

/// Cancels transactions between single INSERTs. Returns how many acknowledged rows are missing.
async fn lost(database: &TestDatabase, pool: PgPool) -> i64 {
    sqlx::query("CREATE TABLE written (id bigint)")
        .execute(&pool)
        .await
        .unwrap();
    // Opens all connections first, so that none is cancelled while it is being opened.
    let opening = (0..CONNECTIONS).map(|_| pool.acquire());
    drop(futures_util::future::join_all(opening).await);
    let cancelling = async {
        for round in 0..ROUNDS {
            let cancelled = (1..=POLLS_MAX)
                .map(|polls| cancel_after((polls + round) % POLLS_MAX + 1, unfinished(&pool)));
            futures_util::future::join_all(cancelled).await;
        }
    };
    let writing = async {
        for id in 0..ROUNDS {
            sqlx::query("INSERT INTO written VALUES ($1)")
                .bind(id)
                .execute(&pool)
                .await
                .unwrap();
        }
    };
    tokio::join!(cancelling, writing);
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
    ROUNDS - kept
}

#[tokio::test]
async fn no_acknowledged_row_is_lost_to_cancelled_transactions() {
    let database = TestDatabase::create().await;
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(&dir, "", &[]);
    let pool = easel::db::open(database.options(), &config.database)
        .await
        .unwrap();
    assert_eq!(lost(&database, PgPool::clone(&pool)).await, 0);
}

#[tokio::test]
async fn without_the_fix_the_same_test_loses_rows() {
    let database = TestDatabase::create().await;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        .connect_with(database.options())
        .await
        .unwrap();
    let lost = lost(&database, pool).await;
    assert!(
        lost > 0,
        "sqlx is cured: `after_release` in src/db/pool.rs can go"
    );
}
