//! Models, balances and usage: the complete bodies.

use insta::assert_json_snapshot;
use serde_json::json;

use crate::harness::{TestApp, account::Account, redact::redacted};

const MODELS: &str = "
    [models.gpt-image-2]
    routes = ['demo']
    [models.cheap-1]
    routes = ['demo']
    owned_by = 'org'
    n_max = 2
    price_low = '0.01'
    price_medium = '0.0205'
    price_high = '1'";

#[tokio::test]
async fn models_show_their_prices() {
    let app = TestApp::with(MODELS).await;
    let caller = app.caller("0").await;

    let list = caller.get("/v1/models").await.json();

    assert_json_snapshot!(list, @r#"
    {
      "data": [
        {
          "created": 1767225600,
          "id": "cheap-1",
          "object": "model",
          "owned_by": "org",
          "pricing": {
            "currency": "CNY",
            "high": 1.0,
            "low": 0.01,
            "medium": 0.0205
          }
        },
        {
          "created": 1767225600,
          "id": "gpt-image-2",
          "object": "model",
          "owned_by": "easel",
          "pricing": {
            "currency": "CNY",
            "high": 0.4,
            "low": 0.1,
            "medium": 0.2
          }
        }
      ],
      "first_id": "cheap-1",
      "has_more": false,
      "last_id": "gpt-image-2",
      "object": "list"
    }
    "#);
    for (index, name) in ["cheap-1", "gpt-image-2"].iter().enumerate() {
        let model = caller.get(&format!("/v1/models/{name}")).await;
        assert_eq!(model.status, 200, "{name}");
        assert_eq!(model.json(), list["data"][index], "{name}");
    }
    let missing = caller.get("/v1/models/dall-e-3").await;
    assert_json_snapshot!(missing.refused(404), @r#"
    {
      "error": {
        "code": null,
        "message": "no such model",
        "param": null,
        "provider": "easel",
        "type": "not_found_error"
      }
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn a_balance_has_the_fields_of_both_apis() {
    let app = TestApp::start().await;
    let caller = app.caller("100").await;
    assert_eq!(caller.generate("a cat").await.status, 200);

    let balance = caller.get("/v1/balance").await;

    assert_eq!(balance.header("cache-control"), Some("no-store"));
    assert_json_snapshot!(balance.json(), @r#"
    {
      "available": 99.8,
      "balance": 99.8,
      "currency": "CNY",
      "held": 0.0,
      "month_spend": 0.2,
      "monthly_quota": null,
      "remain_balance": 99.8,
      "success": true,
      "unlimited_quota": false,
      "used_balance": 0.2
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn held_money_is_not_available() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\ndelay_ms = 1500").await;
    let caller = app.create(Account::with("1").monthly_quota("5")).await;
    let body = json!({"model": "gpt-image-2", "prompt": "a cat", "quality": "high"});
    caller.submit(&body).await;

    assert_json_snapshot!(caller.balance().await, @r#"
    {
      "available": 0.6,
      "balance": 1.0,
      "currency": "CNY",
      "held": 0.4,
      "month_spend": 0.0,
      "monthly_quota": 5.0,
      "remain_balance": 0.6,
      "success": true,
      "unlimited_quota": false,
      "used_balance": 0.0
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn a_usage_record_has_its_cost_broken_down() {
    let _redacted = redacted();
    let app = TestApp::start().await;
    let caller = app.caller("1").await;
    let body = json!({"model": "gpt-image-2", "prompt": "a cat", "n": 2, "quality": "low",
        "size": "4:3", "resolution": "1K"});
    assert_eq!(
        caller.post("/v1/images/generations", &body).await.status,
        200
    );

    let usage = caller.get("/v1/usage").await.json();

    assert_json_snapshot!(usage, @r#"
    {
      "data": [
        {
          "api_key": "test",
          "cost": 0.2,
          "cost_breakdown": {
            "image_cost_rmb": 0.1,
            "image_count": 2,
            "image_urls": [
              "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-1.png",
              "https://HOST/v1/images/files/gpt-image-2/[date]/[file]-2.png"
            ]
          },
          "created": [time],
          "id": "[task]",
          "model": "gpt-image-2",
          "quality": "low",
          "resolution": "1k",
          "size": "4:3",
          "status": "completed",
          "task_id": "[task]"
        }
      ],
      "first_id": "[task]",
      "has_more": false,
      "last_id": "[task]",
      "object": "list"
    }
    "#);
    app.finish().await;
}

#[tokio::test]
async fn a_failed_request_is_a_record_without_cost() {
    let _redacted = redacted();
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\nfailure_percent = 100").await;
    let (caller, other) = (app.caller("1").await, app.caller("1").await);
    assert_eq!(caller.generate("a cat").await.status, 502);

    let usage = caller.get("/v1/usage").await.json();

    assert_json_snapshot!(usage, @r#"
    {
      "data": [
        {
          "api_key": "test",
          "cost": 0.0,
          "cost_breakdown": {
            "image_cost_rmb": 0.2,
            "image_count": 0,
            "image_urls": []
          },
          "created": [time],
          "id": "[task]",
          "model": "gpt-image-2",
          "quality": "medium",
          "resolution": "1k",
          "size": "1:1",
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
    assert_json_snapshot!(other.get("/v1/usage").await.json(), @r#"
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
