//! Invalid keys, on every route that requires one.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use easel::accounts::store::{self as accounts, AccountStatus};
use insta::assert_snapshot;
use reqwest::Method;

use crate::harness::{
    TestApp,
    account::Account,
    caller::{Answer, Caller, http_client},
};

const INVALID: &str = "invalid API key";

const ROUTES: [(Method, &str); 12] = [
    (Method::POST, "/v1/uploads/images"),
    (Method::POST, "/uploads/images"),
    (Method::POST, "/v1/images/generations"),
    (Method::POST, "/images/generations"),
    (Method::POST, "/v1/images/edits/async"),
    (Method::GET, "/v1/images/generations/x"),
    (Method::GET, "/v1/images/tasks/x"),
    (Method::GET, "/v1/images/tasks"),
    (Method::GET, "/v1/models"),
    (Method::GET, "/v1/models/gpt-image-2"),
    (Method::GET, "/v1/balance"),
    (Method::GET, "/v1/usage"),
];

#[tokio::test]
async fn every_route_of_the_api_asks_for_a_key() {
    let app = TestApp::start().await;
    let (mut missing, mut invalid) = (BTreeSet::new(), BTreeSet::new());
    for (method, path) in ROUTES {
        let request = http_client().request(method, format!("{}{path}", app.url));
        let unknown = request.try_clone().unwrap();
        let unknown = unknown.bearer_auth("sk_0123456789abcdefghijABCDEFGHIJ");
        missing.insert(Answer::of(request).await.refusal());
        invalid.insert(Answer::of(unknown).await.refusal());
    }
    let bodies: Vec<String> = missing.into_iter().chain(invalid).collect();
    assert_snapshot!(bodies.join("\n"), @r#"
    401 {"error":{"message":"missing API key: send one as `Authorization: Bearer sk_…`","type":"authentication_error","code":"invalid_api_key","param":null,"provider":"easel"}}
    401 {"error":{"message":"invalid API key","type":"authentication_error","code":"invalid_api_key","param":null,"provider":"easel"}}
    "#);
    app.finish().await;
}

#[tokio::test]
async fn malformed_keys_are_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let unknown = easel::accounts::keys::generate();
    let unknown = secrecy::ExposeSecret::expose_secret(&unknown.secret).to_owned();
    let good = caller.key.clone();
    let wrong = if good.ends_with('x') { 'y' } else { 'x' };
    let mistyped = format!("{}{wrong}", &good[..good.len() - 1]);
    let ask = |headers: Vec<(&'static str, String)>| {
        let mut request = http_client().get(format!("{}/v1/balance", app.url));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Answer::of(request)
    };
    for headers in [
        vec![("authorization", format!("Bearer {unknown}"))],
        vec![("authorization", format!("Bearer {mistyped}"))],
        vec![("authorization", "Bearer sk-proj-abc".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", format!("Basic {good}"))],
        vec![("authorization", format!("Bearer Bearer {good}"))],
        vec![("x-api-key", unknown.clone())],
    ] {
        let answer = ask(headers.clone()).await;
        assert_eq!(answer.status, 401, "{headers:?}");
        answer.assert_refused(401, INVALID);
    }
    let two = ask(vec![
        ("authorization", format!("Bearer {good}")),
        ("x-api-key", unknown),
    ]);
    assert_eq!(two.await.status, 401);
    for headers in [
        vec![("authorization", format!("bearer {good}"))],
        vec![("authorization", good.clone())],
        vec![("x-api-key", good.clone())],
        vec![
            ("api-key", good.clone()),
            ("authorization", format!("Bearer {good}")),
        ],
    ] {
        assert_eq!(ask(headers.clone()).await.status, 200, "{headers:?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_expired_key_is_refused() {
    let app = TestApp::start().await;
    let expired = Account::with("1").key(|key| key.expires_at = Some(DateTime::<Utc>::UNIX_EPOCH));
    let caller = app.create(expired).await;
    caller.get("/v1/balance").await.assert_refused(401, INVALID);
    app.finish().await;
}

/// Nothing is generated or held, although the key was valid a moment ago and is cached as such.
async fn assert_spends_nothing(caller: &Caller) {
    caller.generate("a cat").await.assert_refused(401, INVALID);
}

#[tokio::test]
async fn a_revoked_key_spends_nothing_from_then_on() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    assert_eq!(caller.get("/v1/balance").await.status, 200);

    let mut conn = app.app.pool.acquire().await.unwrap();
    accounts::revoke_key(&mut conn, caller.key_id)
        .await
        .unwrap();
    drop(conn);

    assert_spends_nothing(&caller).await;
    app.finish().await;
}

#[tokio::test]
async fn a_disabled_account_spends_nothing_from_then_on() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    assert_eq!(caller.get("/v1/balance").await.status, 200);

    let mut conn = app.app.pool.acquire().await.unwrap();
    let disabled = accounts::set_status(&mut conn, &caller.account, AccountStatus::Disabled).await;
    assert_eq!(disabled.unwrap(), Some(()));
    drop(conn);

    assert_spends_nothing(&caller).await;
    app.finish().await;
}
