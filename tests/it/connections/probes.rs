//! `/readyz` as load balancers, strangers and the local machine see it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use insta::{assert_json_snapshot, assert_snapshot};
use sqlx::{Connection, PgConnection};

use crate::harness::{
    TestApp,
    caller::{Answer, http_client},
    fake_server::{Call, FakeServer, Protocol, Reply},
};

/// A store that accepts everything.
struct Store;

impl Protocol for Store {
    fn answer(&mut self, _call: &Call) -> Reply {
        Reply::empty(200).header("etag", "\"0\"")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_readiness_probes_share_one_check() {
    let store = FakeServer::serving(|_| Store).await;
    let endpoint = &store.url;
    let app = TestApp::with(&format!(
        "[storage]\nurl = 's3://easel'\nendpoint = '{endpoint}'\naccess_key_id = 'a'\n\
         secret_access_key = 'b'\n"
    ))
    .await;
    let writes = || store.calls_by("PUT").len();
    let before = writes();
    let http = http_client();
    let began = Instant::now();
    for _ in 0..5 {
        let ask = || Answer::of(http.get(format!("{}/readyz", app.url)));
        for answer in join_all((0..20).map(|_| ask())).await {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    let looks = 1 + usize::try_from(began.elapsed().as_secs() / 2).unwrap();
    let written = writes() - before;
    assert!((1..=looks).contains(&written), "{written} in {looks}");
    app.finish().await;
}

/// Refuses connections to the test's database, or allows them again.
async fn close_database(app: &TestApp, is_closed: bool) {
    let options = app.database.options();
    let name = options.get_database().unwrap().to_owned();
    let mut conn = PgConnection::connect_with(&options.database("postgres"))
        .await
        .unwrap();
    for sql in [
        format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {}", !is_closed),
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    ] {
        let sql = sqlx::AssertSqlSafe(sql);
        sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_database_and_its_return_are_reported_within_seconds() {
    let app = TestApp::start().await;
    let ready = || Answer::of(http_client().get(format!("{}/readyz", app.url)));
    assert_eq!(ready().await.status, 200);

    close_database(&app, true).await;
    let began = Instant::now();
    while ready().await.status == 200 {
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    assert_json_snapshot!(ready().await.refused(503), @r#"
    {
      "error": {
        "code": null,
        "message": "the database cannot be reached",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);

    close_database(&app, false).await;
    let began = Instant::now();
    while ready().await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    app.finish().await;
}

#[tokio::test]
async fn only_the_local_machine_sees_the_state_of_the_backends() {
    let app = TestApp::start().await;
    let verbose = || http_client().get(format!("{}/readyz?verbose", app.url));
    assert_json_snapshot!(Answer::of(verbose()).await.json(), @r#"
    {
      "backends": {
        "demo": "closed"
      },
      "status": "ok",
      "storage": "ok"
    }
    "#);
    let mut bodies = Vec::new();
    for header in ["x-forwarded-for", "forwarded", "x-real-ip", "via"] {
        let proxied = Answer::of(verbose().header(header, "127.0.0.1")).await;
        bodies.push(proxied.text().to_owned());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"{"status":"ok"}"#);
    app.finish().await;
}
