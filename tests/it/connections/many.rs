//! More connections than the limit: which ones are closed, and what is answered nevertheless.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{
    HEALTH, PATIENCE, answer, connect, exchange, generation, is_closed, request, sent, status,
    until_closed,
};
use crate::harness::{TestApp, caller::body_of, database::TestDatabase, process::Setup};

/// Settings of a backend that generates slowly.
const SLOW: &str =
    "[backends.demo]\nkind = 'demo'\ndelay_ms = 3000\n[models.gpt-image-2]\nroutes = ['demo']\n";

fn limits(of_server: &str) -> String {
    format!("[server]\n{of_server}\n{SLOW}")
}

/// A connection that was just opened is not closed to make room.
async fn grow_old() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

/// Returns once this many tasks exist that a caller waits for.
async fn wait_for_tasks(app: &TestApp, count: i64) {
    let query = "SELECT count(*) FROM tasks WHERE status = 'running'";
    app.database.wait_for(query, count).await;
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room() {
    let app = TestApp::with("[server]\nconnections_max = 2\nconnections_reserved = 1").await;
    let (mut first, mut second) = (sent(&app.url, HEALTH).await, sent(&app.url, HEALTH).await);
    answer(&mut first).await;
    answer(&mut second).await;
    grow_old().await;
    let mut third = sent(&app.url, HEALTH).await;
    assert_eq!(status(&answer(&mut third).await), 200);
    let (rest, _) = until_closed(&mut first).await;
    assert_eq!(rest, "");
    for stream in [&mut second, &mut third] {
        stream.write_all(HEALTH.as_bytes()).await.unwrap();
        let answer = answer(stream).await;
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    drop((second, third));
    app.finish().await;
}

#[tokio::test]
async fn a_dripping_body_makes_room() {
    let app = TestApp::with("[server]\nconnections_max = 1\nconnections_reserved = 1").await;
    let caller = app.caller("1").await;
    let mut dripping = sent(&app.url, &(generation(&caller, 9999) + "{")).await;
    let began = Instant::now();
    while !is_closed(&mut dripping).await {
        assert!(began.elapsed() < PATIENCE);
        assert_eq!(
            status(&answer(&mut sent(&app.url, HEALTH).await).await),
            200
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn probes_polls_and_files_are_answered_while_all_others_wait() {
    let app = TestApp::with(&limits("connections_max = 2\nconnections_reserved = 2")).await;
    let caller = app.caller("1").await;
    let mut waiting = [
        sent(&app.url, &request(&caller)).await,
        sent(&app.url, &request(&caller)).await,
    ];
    wait_for_tasks(&app, 2).await;

    for path in ["/healthz", "/readyz", "/v1/images/tasks", "/v1/balance"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
            caller.key
        );
        // Closed after the answer, for the next connection.
        let answer = exchange(&app.url, &request).await;
        assert_eq!(status(&answer), 200, "{path} {answer}");
    }
    let file = "GET /f/image/nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(status(&exchange(&app.url, file).await), 404);
    let refused = exchange(&app.url, &request(&caller)).await;
    assert_eq!(status(&refused), 503, "{refused}");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    insta::assert_snapshot!(body_of(&refused), @r#"{"error":{"message":"too many connections","type":"server_error","code":null,"param":null,"provider":"easel"}}"#);

    for stream in &mut waiting {
        assert_eq!(status(&answer(stream).await), 200);
    }
    drop(waiting);
    app.finish().await;
}

#[tokio::test]
async fn one_address_has_no_more_than_its_share() {
    let settings = limits("connections_per_address_max = 2\ntrusted_proxies = []");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let mut waiting = sent(&app.url, &request(&caller)).await;
    wait_for_tasks(&app, 1).await;
    let mut idle = connect(&app.url).await;
    // Its own idle connection makes room.
    grow_old().await;
    let mut second = sent(&app.url, &request(&caller)).await;
    assert_eq!(until_closed(&mut idle).await.0, "");
    wait_for_tasks(&app, 2).await;

    let refused = exchange(&app.url, HEALTH).await;

    assert_eq!(status(&refused), 503, "{refused}");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    insta::assert_snapshot!(body_of(&refused), @r#"{"error":{"code":null,"message":"too many connections","param":null,"provider":"easel","type":"server_error"}}"#);
    for stream in [&mut waiting, &mut second] {
        assert_eq!(status(&answer(stream).await), 200);
    }
    drop((waiting, second));
    app.finish().await;
}

#[tokio::test]
async fn a_trusted_proxy_has_no_share_of_its_own() {
    let settings = limits("connections_per_address_max = 1\ntrusted_proxies = ['127.0.0.1']");
    let app = TestApp::with(&settings).await;
    let caller = app.caller("1").await;
    let mut waiting = sent(&app.url, &request(&caller)).await;
    wait_for_tasks(&app, 1).await;
    assert_eq!(
        status(&answer(&mut sent(&app.url, HEALTH).await).await),
        200
    );
    assert_eq!(status(&answer(&mut waiting).await), 200);
    drop(waiting);
    app.finish().await;
}

/// Hundreds of clients that all request an image at once, and idle ones besides, on a tenth of the usual limits.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_far_beyond_the_connection_limit() {
    let database = TestDatabase::create().await;
    let of_server = "connections_max = 300\nconnections_reserved = 50";
    // Generating the images would keep the machine busy for long afterwards.
    let settings = limits(of_server).replace("3000", "3000\nfailure_percent = 100");
    let gateway = Setup::on(&database, &settings).serve();
    let url = gateway.url();
    let caller = database.caller(&url, "1000").await;
    let clients: Vec<_> = (0..800)
        .map(|n| {
            let (url, request) = (url.clone(), request(&caller));
            super::spawn(async move {
                let request = if n % 3 == 0 { "" } else { &request };
                let mut stream = connect(&url).await;
                let _ = stream.write_all(request.as_bytes()).await;
                tokio::time::sleep(Duration::from_secs(4)).await;
                drop(stream);
            })
        })
        .collect();
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let one = async { answer(&mut sent(&url, HEALTH).await).await };
        let answer = timeout(Duration::from_secs(5), one).await.unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
        slowest = slowest.max(asked.elapsed());
    }
    // One second, and one more for a machine on which other tests run.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    for client in clients {
        client.await.unwrap();
    }
    gateway.kill();
}

/// A limit of five connections, and a hundred that only occupy them.
#[tokio::test]
async fn silent_connections_shut_nobody_out() {
    let app = TestApp::with("[server]\nconnections_max = 5\nconnections_reserved = 1").await;
    let mut silent: Vec<TcpStream> = Vec::new();
    for n in 0..100 {
        let text = if n % 2 == 0 { "" } else { "GET /healthz HT" };
        silent.push(sent(&app.url, text).await);
        if n % 10 == 9 {
            let answer = answer(&mut sent(&app.url, HEALTH).await).await;
            assert_eq!(status(&answer), 200);
        }
    }
    drop(silent);
    app.finish().await;
}
