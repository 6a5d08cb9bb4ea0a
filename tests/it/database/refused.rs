//! Values that PostgreSQL cannot store or does not know.

use easel::db::{self, TimeZoneError};
use serde_json::json;

use crate::harness::{
    self, TestApp,
    database::TestDatabase,
    upstream::{Reply, Upstream, image},
};

#[tokio::test]
async fn any_text_of_an_upstream_can_be_stored() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&upstream.gateway("")).await;
    let caller = app.caller("1").await;
    let image = base64_simd::STANDARD.encode_to_string(image(3, 2, 0));
    let usage = json!({"no\0te": "a\0b", "input_tokens": 1, "output_tokens": 1, "total_tokens": 2});
    let result = json!({"created": 1, "data": [{"b64_json": image}], "usage": usage});
    upstream.next(Reply::json(200, &result));

    let answer = caller.generate("a bridge").await;

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(upstream.calls().len(), 1);
    assert_eq!(caller.balance().await["balance"], 0.8);

    upstream.next(Reply::error(400, "invalid_value", "no\0 such thing"));
    let refused = caller.generate("a bridge").await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(upstream.calls().len(), 2);
    app.finish().await;
}

#[tokio::test]
async fn only_an_unknown_time_zone_is_reported_as_unknown() {
    let database = TestDatabase::create().await;
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(&dir, "", &[]);
    let pool = db::open(database.options(), &config.database)
        .await
        .unwrap();
    assert!(db::check_time_zone(&pool, "Asia/Shanghai").await.is_ok());
    let unknown = db::check_time_zone(&pool, "Asia/Shangrila").await;
    assert!(
        matches!(unknown, Err(TimeZoneError::Unknown)),
        "{unknown:?}"
    );
    pool.close().await;
    let away = db::check_time_zone(&pool, "Asia/Shanghai").await;
    assert!(matches!(away, Err(TimeZoneError::Database(_))), "{away:?}");
}
