//! Errors: one body for all of them, the right status, and nothing confidential.

use std::collections::BTreeSet;

use insta::{assert_json_snapshot, assert_snapshot};
use reqwest::Method;
use serde_json::json;
use tower::ServiceExt;

use crate::harness::{
    TestApp,
    account::Account,
    caller::{Answer, http_client},
};

const FAILING: &str = "[backends.demo]\nkind = 'demo'\nfailure_percent = 100";

#[tokio::test]
async fn an_error_has_all_five_keys_and_the_configured_name() {
    let app = TestApp::with("[server]\nprovider = 'acme images'").await;
    let caller = app.caller("1").await;
    let body = json!({"model": "gpt-image-2", "prompt": "x", "resolution": "4k"});

    let answer = caller.post("/v1/images/generations", &body).await;

    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_json_snapshot!(answer.json(), @r#"
    {
      "error": {
        "code": null,
        "message": "resolution must be 1k or 2k",
        "param": "resolution",
        "provider": "acme images",
        "type": "invalid_request_error"
      }
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn an_empty_balance_names_the_shortfall() {
    let app = TestApp::start().await;
    let caller = app.caller("0.15").await;

    let answer = caller.generate("a cat").await;

    let message = "balance too low: this costs 0.20 CNY and 0.15 CNY is available";
    let error = answer.assert_refused(402, message);
    assert_eq!(error["code"], "insufficient_balance");
    assert_eq!(answer.header("x-should-retry"), None, "nothing was spent");
    app.finish().await;
}

#[tokio::test]
async fn a_used_up_quota_names_the_shortfall() {
    let app = TestApp::start().await;
    let account = Account::with("9").monthly_quota("0.50");
    let caller = app.create(account).await;
    let body = json!({"model": "gpt-image-2", "prompt": "x", "n": 3});

    let answer = caller.post("/v1/images/generations", &body).await;

    let message =
        "monthly quota used up: this costs 0.60 CNY and 0.50 CNY of 0.50 CNY is left this month";
    let error = answer.assert_refused(402, message);
    assert_eq!(error["code"], "quota_exceeded");
    app.finish().await;
}

#[tokio::test]
async fn the_rate_of_a_key_is_limited() {
    let app = TestApp::with(FAILING).await;
    let account = Account::with("1").key(|key| key.requests_per_minute = Some(2));
    let caller = app.create(account).await;
    for _ in 0..2 {
        assert_eq!(caller.generate("a cat").await.status, 502);
    }
    let mut bodies = Vec::new();
    for answer in [
        caller.generate("a cat").await,
        caller.upload(Vec::new(), "a.png").await,
    ] {
        bodies.push(answer.refusal());
        let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds}");
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    429 {"error":{"message":"Rate limit exceeded. Please try again later","type":"rate_limit_error","code":429,"param":null,"provider":"easel"}}
    429 {"error":{"message":"Rate limit exceeded. Please try again later","type":"rate_limit_error","code":429,"param":null,"provider":"easel"}}
    "#);
    assert_eq!(
        caller.get("/v1/balance").await.status,
        200,
        "reading is free"
    );
    app.finish().await;
}

#[tokio::test]
async fn the_open_tasks_of_a_key_are_limited() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\ndelay_ms = 1500").await;
    let account = Account::with("1").key(|key| key.concurrent_requests = Some(1));
    let caller = app.create(account).await;
    let body = json!({"model": "gpt-image-2", "prompt": "a cat"});
    let first = caller.submit(&body).await;

    let answer = caller.generate("a dog").await;

    assert_json_snapshot!(answer.refused(429), @r#"
    {
      "error": {
        "code": "concurrency_limit",
        "message": "the API key has 1 tasks open already, as many as it may",
        "param": null,
        "provider": "easel",
        "type": "rate_limit_error"
      }
    }
    "#);
    assert_eq!(answer.header("retry-after"), Some("5"));
    caller.wait_for(&first).await;
    assert_eq!(caller.generate("a dog").await.status, 200);
    app.finish().await;
}

#[tokio::test]
async fn no_error_after_an_upstream_was_called_asks_for_a_retry() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("1").await;

    let answer = caller.generate("a cat").await;

    assert_json_snapshot!(answer.refused(502), @r#"
    {
      "error": {
        "code": "upstream_error",
        "message": "the upstream failed",
        "param": null,
        "provider": "easel",
        "type": "server_error"
      }
    }
    "#);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("retry-after"), None);
    assert_eq!(caller.balance().await["balance"], 1.0);
    app.finish().await;
}

#[tokio::test]
async fn a_task_past_its_deadline_is_answered_and_costs_nothing() {
    let app = TestApp::with(
        "[backends.demo]\nkind = 'demo'\ndelay_ms = 60000\n[tasks]\ndeadline_ms = 1500\nlease_ms = 1000",
    )
    .await;
    let caller = app.caller("1").await;

    let answer = caller.generate("a cat").await;

    let error = answer.assert_refused(504, "the task ran past its deadline");
    assert_eq!(error["code"], "deadline_exceeded");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(caller.balance().await["available"], 1.0);
    app.finish().await;
}

#[tokio::test]
async fn a_sane_request_id_is_echoed_and_any_other_replaced() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let ask = |path: &'static str, id: String| {
        Answer::of(caller.request(Method::GET, path).header("x-request-id", id))
    };
    for path in ["/healthz", "/v1/balance", "/nowhere", "/v1/models/x"] {
        let answer = ask(path, "req-42:A_b.c/d+e=".to_owned()).await;
        assert_eq!(answer.header("x-request-id"), Some("req-42:A_b.c/d+e="));
        for insane in ["a b", "<script>", "\"x\"", &"x".repeat(129)] {
            let id = ask(path, insane.to_owned()).await;
            let id = id.header("x-request-id").unwrap();
            assert_eq!(id.len(), 36, "{insane} {id}");
        }
        let given = caller.get(path).await;
        assert_eq!(given.header("x-request-id").unwrap().len(), 36);
    }
    app.finish().await;
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_have_a_body() {
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let mut bodies = BTreeSet::new();
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1", 404),
        (Method::POST, "/v1/chat/completions", 404),
        (Method::GET, "/v1/images/files/gpt-image-2", 404),
        (Method::GET, "/v2/images/generations", 404),
        (Method::GET, "/v1/images/generations", 405),
        (Method::DELETE, "/v1/images/generations", 405),
        (Method::PUT, "/v1/uploads/images", 405),
        (Method::POST, "/v1/models", 405),
        (Method::POST, "/healthz", 405),
        (Method::OPTIONS, "/v1/usage", 405),
        (Method::from_bytes(b"BREW").unwrap(), "/v1/models", 405),
    ] {
        let answer = Answer::of(caller.request(method.clone(), path)).await;
        assert_eq!(answer.status, status, "{method} {path}");
        bodies.insert(answer.refusal());
        if status == 405 {
            assert!(answer.header("allow").is_some(), "{method} {path}");
        }
        let head = Answer::of(caller.request(Method::HEAD, path)).await;
        assert_eq!(head.header("content-type"), Some("application/json"));
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        assert!(length > 0, "HEAD {path}");
    }
    let bodies: Vec<String> = bodies.into_iter().collect();
    assert_snapshot!(bodies.join("\n"), @r#"
    404 {"error":{"message":"no such file","type":"not_found_error","code":null,"param":null,"provider":"easel"}}
    404 {"error":{"message":"no such route","type":"not_found_error","code":null,"param":null,"provider":"easel"}}
    405 {"error":{"message":"this route does not take that method","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    "#);
    app.finish().await;
}

#[tokio::test]
async fn probes_need_no_key_and_report_draining() {
    let app = TestApp::start().await;
    let http = http_client();
    let ask = |path: &str| Answer::of(http.get(format!("{}{path}", app.url)));
    let mut bodies = Vec::new();
    for path in ["/healthz", "/readyz"] {
        let answer = ask(path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        bodies.push(format!("{path} {}", answer.text()));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }

    // The listener is closed by then: the request arrives as if on a connection that is still open.
    app.begin_shutdown();
    let router = easel::http::router(app.app.clone());
    for (path, status) in [("/healthz", 200), ("/readyz", 503)] {
        let request = axum::extract::Request::get(path).header("host", "x");
        let request = request.body(axum::body::Body::empty());
        let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503);
        let body = axum::body::to_bytes(answer.into_body(), 9999)
            .await
            .unwrap();
        bodies.push(format!("{path} {}", String::from_utf8_lossy(&body)));
    }
    assert_snapshot!(bodies.join("\n"), @r#"
    /healthz {"status":"ok"}
    /readyz {"status":"ok"}
    /healthz {"status":"ok"}
    /readyz {"error":{"message":"the gateway is shutting down","type":"server_error","code":null,"param":null,"provider":"easel"}}
    "#);
    app.finish().await;
}
