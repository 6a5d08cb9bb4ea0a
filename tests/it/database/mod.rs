//! The database: its migrations, and what clients get while it is silent, away, blocked by locks or refuses its input:
//! nothing is lost or bought twice.

mod away;
mod cancelled_begin;
mod expired;
mod joined;
mod locked;
mod migrations;
mod plans;
mod refused;
mod silent;
mod unreadable;

use std::time::{Duration, Instant};

use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    database::TestDatabase,
    fault_proxy::FaultProxy,
    upstream::Upstream,
};

/// Short time-outs, where operators can set them.
const BRIEF: &str = "[database]\nconnect_timeout_ms = 400\ntransaction_timeout_ms = 800\n";

/// Every request must be answered within this time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A gateway behind a proxy, whose only model uses a fake upstream.
struct Behind {
    app: TestApp,
    upstream: Upstream,
    proxy: FaultProxy,
}

impl Behind {
    async fn start(settings: &str) -> Self {
        let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
        let proxy = database.proxy().await;
        let settings = format!("{settings}{}", upstream.gateway(""));
        let app = TestApp::behind(&proxy, database, &settings).await;
        Self {
            app,
            upstream,
            proxy,
        }
    }

    async fn caller(&self, balance: &str) -> Caller {
        self.app.caller(balance).await
    }
}

/// The pid of the one PostgreSQL session that LISTENs on this database, once there is exactly one.
async fn listening_pid(database: &TestDatabase) -> i64 {
    let locks = "FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    database
        .wait_for(&format!("SELECT count(*) {locks}"), 1)
        .await;
    database
        .number(&format!("SELECT COALESCE(max(pid), 0)::bigint {locks}"))
        .await
}

/// The answer to a request, which must arrive in time.
async fn in_time(asked: impl Future<Output = Answer>) -> Answer {
    let began = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
    let took = began.elapsed();
    assert!(took < ANSWERED_WITHIN, "{took:?}: {answer:?}");
    answer.unwrap()
}
