//! What one request costs, in counts that do not depend on the machine. A change that makes requests dearer fails here; if
//! it is worth its price, the limit is raised with it.

use std::time::Instant;

use crate::harness::{
    TestApp,
    caller::Caller,
    database::TestDatabase,
    process::Setup,
    strace,
    upstream::{Reply, Upstream},
};

const REQUESTS: usize = 20;

async fn generate(caller: &Caller, times: usize) {
    for _ in 0..times {
        assert_eq!(caller.generate("a small image").await.status, 200);
    }
}

/// The lines of a trace between two requests that name themselves.
fn between<'a>(log: &'a str, first: &str, last: &str) -> Vec<&'a str> {
    let after = log.lines().skip_while(|line| !line.contains(first));
    after.take_while(|line| !line.contains(last)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_image_takes_two_statements_and_few_system_calls() {
    if !strace::is_installed("counting system calls") {
        return;
    }
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let setup = Setup::on(&database, &upstream.gateway(""));
    let log = setup.dir.path().join("strace.log");
    let traced = [
        "strace",
        "-D",
        "-f",
        "-s",
        "600",
        "-o",
        log.to_str().unwrap(),
    ];
    let gateway = setup.clone().under(&traced).serve();
    let caller = database.caller(&gateway.url(), "100").await;
    // Statements are prepared and connections opened by then.
    generate(&caller, 10).await;
    let began = Instant::now();
    assert_eq!(caller.generate("the count begins").await.status, 200);
    generate(&caller, REQUESTS).await;
    assert_eq!(caller.generate("the count ends").await.status, 200);
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    gateway.end();
    let log = strace::record(&log).await;
    let calls = between(&log, "the count begins", "the count ends");
    assert!(calls.len() > 10 * REQUESTS, "{} lines", calls.len());

    // The request that names the beginning counts, and what the gateway does by itself every second.
    let limit = |each: usize, a_second: usize| each * (REQUESTS + 1) + a_second * seconds;
    let statements = calls.iter().filter(|call| call.contains("sqlx_s_")).count();
    let resumed = |call: &&&str| !call.contains("resumed>");
    let waits = |call: &&&str| {
        ["futex(", "epoll_wait("]
            .iter()
            .any(|wait| call.contains(wait))
    };
    let all = calls.iter().filter(resumed).count();
    let working = all - calls.iter().filter(resumed).filter(waits).count();
    crate::harness::say(&format!(
        "a small image: {statements} statements, {working} system calls and {} waits in {REQUESTS} requests",
        all - working
    ));
    assert!(statements <= limit(2, 6), "{statements} statements");
    assert!(working <= limit(40, 100), "{working} system calls");
}

#[test]
fn a_small_image_allocates_little() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_upstream, app, caller) = runtime.block_on(async {
        let upstream = Upstream::start().await;
        upstream.always(Some(Reply::an_image()));
        let app = TestApp::with(&upstream.gateway("")).await;
        let caller = app.caller("100").await;
        generate(&caller, 10).await;
        (upstream, app, caller)
    });
    // The client and the fake upstream are a part of it: they run in the same thread.
    let allocated = allocation_counter::measure(|| runtime.block_on(generate(&caller, REQUESTS)));
    let each = allocated.bytes_total / REQUESTS as u64;
    let blocks = allocated.count_total / REQUESTS as u64;
    crate::harness::say(&format!(
        "a small image: {each} bytes in {blocks} allocations"
    ));
    assert!(each <= 160_000, "{each} bytes");
    runtime.block_on(app.finish());
}
