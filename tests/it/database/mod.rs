//! A database that falls silent, vanishes, is held up by others or refuses what it is given: what clients are
//! told, and that nothing is lost or bought twice.

mod away;
mod expired;
mod joined;
mod locked;
mod refused;
mod silent;

use std::time::{Duration, Instant};

use crate::harness::{
    TestApp,
    caller::{Answer, Caller},
    database::TestDatabase,
    fault_proxy::FaultProxy,
    upstream::{Gate, Reply, Upstream, picture},
};

/// Short waits, where they are the operator's to choose.
const BRIEF: &str = "[database]\nconnect_timeout_ms = 400\ntransaction_timeout_ms = 800\n";

/// Whoever asks must be told something by then.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// A gateway behind a proxy, whose only model is drawn by an upstream.
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
        self.app.database.caller(&self.app.url, balance).await
    }
}

/// Has the next drawing answered when the gate lets it go.
fn hold(upstream: &Upstream) -> Gate {
    let gate = Gate::new(tokio::sync::Semaphore::new(0));
    upstream.next(Reply::pictures(&[picture(3, 2, 0)]).held_by(&gate));
    gate
}

/// A request that waits, while the test does other things.
#[expect(clippy::disallowed_methods, reason = "it may end with the test")]
fn waiting(caller: &Caller, prompt: &str) -> tokio::task::JoinHandle<Answer> {
    let (caller, prompt) = (caller.clone(), prompt.to_owned());
    tokio::spawn(async move { caller.draw(&prompt).await })
}

/// What a request is answered, in time.
async fn in_time(asked: impl Future<Output = Answer>) -> Answer {
    let began = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
    let took = began.elapsed();
    assert!(took < TOLD_WITHIN, "{took:?}: {answer:?}");
    answer.unwrap()
}
