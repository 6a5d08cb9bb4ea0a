//! What clients see of a task: the ticket, polling, and the list.

use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};

use crate::harness::{TestApp, caller::Caller, redact::redacted};

const SLOW: &str = "[backends.demo]\nkind = 'demo'\ndelay_ms = 1500";
const FAILING: &str = "[backends.demo]\nkind = 'demo'\nfailure_percent = 100";

fn cat() -> Value {
    json!({"model": "gpt-image-2", "prompt": "a cat"})
}

#[tokio::test]
async fn a_ticket_says_where_to_poll() {
    let _redacted = redacted();
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("1").await;

    let ticket = caller.post("/v1/images/generations?async=1", &cat()).await;

    assert_eq!(ticket.status, 202, "{ticket:?}");
    let body = ticket.json();
    assert_json_snapshot!(body, @r#"
    {
      "id": "[task]",
      "poll_url": "https://HOST/v1/images/tasks/[task]",
      "status": "pending",
      "task_id": "[task]"
    }
    "#);
    assert_eq!(ticket.header("location"), body["poll_url"].as_str());
    assert_eq!(ticket.header("retry-after"), Some("2"));
    assert_eq!(ticket.header("cache-control"), Some("no-store"));
    app.finish().await;
}

#[tokio::test]
async fn a_ticket_is_given_only_when_asked_for() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("10").await;
    for (path, status) in [
        ("/v1/images/generations?async=1", 202),
        ("/v1/images/generations?async=true", 202),
        ("/v1/images/generations?async=yes", 202),
        ("/v1/images/edits?async=1", 202),
        ("/images/generations?async=1", 202),
        ("/images/edits?async=1", 202),
        ("/v1/images/generations/async", 202),
        ("/v1/images/edits/async", 202),
        ("/images/generations/async", 202),
        ("/images/edits/async", 202),
        ("/v1/images/generations", 502),
        ("/v1/images/generations?async=0", 502),
        ("/v1/images/generations?async=false", 502),
        ("/v1/images/generations?async=", 502),
        ("/v1/images/generations?api-version=2025-04-01", 502),
        ("/v1/images/edits", 502),
        ("/images/generations", 502),
        ("/images/edits", 502),
    ] {
        assert_eq!(caller.post(path, &cat()).await.status, status, "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_pending_task_is_its_ids_and_its_model() {
    let _redacted = redacted();
    let app = TestApp::with(SLOW).await;
    let caller = app.caller("1").await;
    let id = caller.submit(&cat()).await;

    let answer = caller.get(&format!("/v1/images/tasks/{id}")).await;

    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_json_snapshot!(answer.json(), @r#"
    {
      "created": [time],
      "id": "[task]",
      "model": "gpt-image-2",
      "object": "image.task",
      "status": "pending",
      "task_id": "[task]"
    }
    "#);
    assert_eq!(caller.balance().await["held"], 0.2);
    app.finish().await;
}

#[tokio::test]
async fn a_completed_task_has_its_links_and_its_cost() {
    let _redacted = redacted();
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let id = caller
        .submit(&json!({"model": "gpt-image-2", "prompt": "a cat", "n": 2, "quality": "low"}))
        .await;

    assert_json_snapshot!(caller.wait_for(&id).await, @r#"
    {
      "completed": [time],
      "cost": 0.2,
      "created": [time],
      "data": [
        {
          "url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png"
        },
        {
          "url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-2.png"
        }
      ],
      "id": "[task]",
      "model": "gpt-image-2",
      "object": "image.task",
      "result_url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png",
      "status": "completed",
      "task_id": "[task]",
      "url": "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png"
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn a_failed_task_costs_nothing_and_says_why() {
    let _redacted = redacted();
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("1").await;
    let id = caller.submit(&cat()).await;

    let task = caller.wait_for(&id).await;
    assert_json_snapshot!(task, @r#"
    {
      "completed": [time],
      "cost": 0.0,
      "created": [time],
      "error": {
        "code": "upstream_error",
        "message": "the upstream failed",
        "type": "server_error"
      },
      "fail_reason": "the upstream failed",
      "id": "[task]",
      "model": "gpt-image-2",
      "object": "image.task",
      "status": "failed",
      "task_id": "[task]"
    }
    "#);
    assert_json_snapshot!(caller.get("/v1/images/tasks").await.json(), @r#"
    {
      "data": [
        {
          "completed": [time],
          "cost": 0.0,
          "created": [time],
          "error": {
            "code": "upstream_error",
            "message": "the upstream failed",
            "type": "server_error"
          },
          "fail_reason": "the upstream failed",
          "id": "[task]",
          "model": "gpt-image-2",
          "object": "image.task",
          "status": "failed",
          "task_id": "[task]"
        }
      ],
      "first_id": "[task]",
      "has_more": false,
      "last_id": "[task]",
      "object": "list"
    }
    "#);
    assert_eq!(caller.balance().await["balance"], 1.0);
    app.finish().await;
}

#[tokio::test]
async fn both_routes_show_the_same_task_to_its_account_only() {
    let app = TestApp::with(FAILING).await;
    let (caller, other) = (app.caller("1").await, app.caller("1").await);
    let id = caller.submit(&cat()).await;
    let task = caller.wait_for(&id).await;

    let mut bodies = Vec::new();
    for path in [
        "/v1/images/tasks",
        "/v1/images/generations",
        "/images/generations",
    ] {
        let answer = caller.get(&format!("{path}/{id}")).await;
        assert_eq!(answer.json(), task, "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        for (caller, id) in [
            (&other, id.as_str()),
            (&caller, "0197a1b2-c3d4-7abc-9def-0123456789ab"),
            (&caller, "task_1"),
            (&caller, "%00"),
        ] {
            let missing = caller.get(&format!("{path}/{id}")).await;
            bodies.push(missing.refusal());
        }
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"404 {"error":{"message":"no such task","type":"not_found_error","code":null,"param":null,"provider":"easel"}}"#);
    assert_json_snapshot!(other.get("/v1/images/tasks").await.json(), @r#"
    {
      "data": [],
      "first_id": null,
      "has_more": false,
      "last_id": null,
      "object": "list"
    }
    "#);
    app.finish().await;
}

async fn page(caller: &Caller, path: &str) -> (Vec<String>, Value) {
    let answer = caller.get(path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let id = |task: &Value| task["id"].as_str().unwrap().to_owned();
    let ids: Vec<String> = body["data"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(body["object"], "list");
    assert_eq!(body["first_id"], json!(ids.first()));
    assert_eq!(body["last_id"], json!(ids.last()));
    (ids, body["has_more"].clone())
}

#[tokio::test]
async fn lists_are_read_page_by_page_newest_first() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("1").await;
    let mut newest_first = Vec::new();
    for _ in 0..5 {
        let id = caller.submit(&cat()).await;
        caller.wait_for(&id).await;
        newest_first.insert(0, id);
    }
    for list in ["/v1/images/tasks", "/v1/usage"] {
        let whole = page(&caller, list).await;
        assert_eq!(whole, (newest_first.clone(), json!(false)), "{list}");
        let first = page(&caller, &format!("{list}?limit=2")).await;
        assert_eq!(first, (newest_first[..2].to_vec(), json!(true)));
        let next = format!("{list}?limit=2&after={}", newest_first[1]);
        assert_eq!(
            page(&caller, &next).await,
            (newest_first[2..4].to_vec(), json!(true))
        );
        let last = format!("{list}?limit=2&after={}", newest_first[3]);
        assert_eq!(
            page(&caller, &last).await,
            (newest_first[4..].to_vec(), json!(false))
        );
        let end = format!("{list}?limit=100&after={}", newest_first[4]);
        assert_eq!(page(&caller, &end).await, (Vec::new(), json!(false)));
        let exact = page(&caller, &format!("{list}?limit=5")).await;
        assert_eq!(exact.1, json!(false), "a full page may be the last");
    }
    app.finish().await;
}

#[tokio::test]
async fn invalid_page_parameters_are_refused() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let mut bodies = Vec::new();
    for limit in ["0", "101", "-1", "many", "1.5", "", "1&limit=2"] {
        let answer = caller.get(&format!("/v1/images/tasks?limit={limit}")).await;
        bodies.push(answer.refusal());
    }
    for list in ["/v1/images/tasks", "/v1/usage"] {
        let answer = caller.get(&format!("{list}?after=x")).await;
        bodies.push(answer.refusal());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"limit must be an integer from 1 to 100","type":"invalid_request_error","code":null,"param":"limit","provider":"easel"}}
    400 {"error":{"message":"invalid query string: Failed to deserialize query string: duplicate field `limit`","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}
    400 {"error":{"message":"after must be the id of a task","type":"invalid_request_error","code":null,"param":"after","provider":"easel"}}
    400 {"error":{"message":"after must be the id of a usage record","type":"invalid_request_error","code":null,"param":"after","provider":"easel"}}
    "#);
    app.finish().await;
}
