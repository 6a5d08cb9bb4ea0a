//! Databases of earlier versions: their data stays usable.

use std::borrow::Cow;

use easel::{db, tasks::store};
use sqlx::{Executor, PgPool, migrate::Migrator};

use crate::harness::database::{TestDatabase, queue_head};

static ALL: Migrator = sqlx::migrate!();

/// As the first version wrote it: an account with a hold for each of its open tasks.
const FIRST_VERSION: &str = r#"
    INSERT INTO accounts (id, name, balance, held)
    VALUES ('018f0000-0000-7000-8000-00000000000a', 'studio', 1000000, 400000);
    INSERT INTO api_keys (id, account_id, name, hash, hint)
    VALUES ('018f0000-0000-7000-8000-00000000000b', '018f0000-0000-7000-8000-00000000000a', 'first', 'x', 'sk');
    INSERT INTO tasks (id, account_id, api_key_id, status, request, n, unit_price, fingerprint, file_id,
        deadline_at, attempts, fence, lease_until, upstream_id)
    SELECT id, '018f0000-0000-7000-8000-00000000000a', '018f0000-0000-7000-8000-00000000000b', status,
        '{"model": "gpt-image-2", "prompt": "a bridge", "n": 1, "ratio": "1:1", "resolution": "1k",
          "size": {"width": 1024, "height": 1024}, "quality": "medium"}',
        1, 200000, 'f', gen_random_uuid(), now() + interval '1 hour', attempts, attempts, lease_until, 'job-1'
    FROM (VALUES
        ('018f0000-0000-7000-8000-000000000001'::uuid, 'queued', 0, NULL::timestamptz),
        ('018f0000-0000-7000-8000-000000000002', 'running', 1, now() - interval '1 minute')
    ) AS t (id, status, attempts, lease_until);
"#;

#[tokio::test]
async fn tasks_of_the_first_version_are_resumed() {
    let database = TestDatabase::empty().await;
    let pool = PgPool::connect_with(database.options()).await.unwrap();
    let first = Migrator {
        migrations: Cow::Owned(ALL.iter().take(1).cloned().collect()),
        ..Migrator::DEFAULT
    };
    first.run(&pool).await.unwrap();
    pool.execute(FIRST_VERSION).await.unwrap();

    db::migrate(&pool).await.unwrap();

    let mut tx = pool.begin().await.unwrap();
    assert_eq!(store::requeue_lost(&mut tx, 3).await.unwrap(), 1);
    let waiting = queue_head(&mut tx, 10).await;
    assert_eq!(waiting.len(), 2);
    for task in &waiting {
        assert_eq!(task.model, "gpt-image-2");
        assert!(task.assignment.route.is_none() && task.assignment.tried.is_empty());
    }
    let claim = |task: &store::Waiting| store::Claim {
        id: task.id,
        route: Some("demo".to_owned()),
    };
    let claims: Vec<_> = waiting.iter().map(claim).collect();
    let lease = std::time::Duration::from_mins(1);
    let claimed = store::claim(&mut tx, &claims, lease).await.unwrap();
    assert_eq!(claimed.len(), 2);
    tx.commit().await.unwrap();
}
