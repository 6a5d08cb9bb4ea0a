//! Databases of earlier versions: their data stays usable.

use std::borrow::Cow;

use easel::{
    billing::ledger::{self, Scope},
    db::{self, Patience},
    tasks::store,
};
use sqlx::{Executor, PgPool, migrate::Migrator};

use crate::harness::database::{TestDatabase, over_route, queue_head};

static ALL: Migrator = sqlx::migrate!();

/// What each version wrote, in order: one for each migration.
const ROWS: [&str; 10] = [
    // An account with a hold for each of its open tasks.
    r#"INSERT INTO accounts (id, name, balance, held)
       VALUES ('018f0000-0000-7000-8000-00000000000a', 'studio', 2000000, 1200000);
       INSERT INTO api_keys (id, account_id, name, hash, hint)
       VALUES ('018f0000-0000-7000-8000-00000000000b', '018f0000-0000-7000-8000-00000000000a', 'first', 'x', 'sk');
       INSERT INTO entries (account_id, kind, balance_change, held_change)
       VALUES ('018f0000-0000-7000-8000-00000000000a', 'top_up', 2000000, 0);
       CREATE FUNCTION sample(task_id text, more jsonb) RETURNS void LANGUAGE sql AS $$
           INSERT INTO tasks (id, account_id, api_key_id, status, request, n, unit_price, fingerprint, file_id, deadline_at)
           VALUES (task_id::uuid, '018f0000-0000-7000-8000-00000000000a', '018f0000-0000-7000-8000-00000000000b',
               'queued', '{"model": "gpt-image-2", "prompt": "a bridge", "n": 1, "ratio": "1:1", "resolution": "1k",
                   "size": {"width": 1024, "height": 1024}, "quality": "medium"}' || more,
               1, 200000, 'f', gen_random_uuid(), now() + interval '1 hour')
       $$;
       SELECT sample('018f0000-0000-7000-8000-000000000001', '{}');
       SELECT sample('018f0000-0000-7000-8000-000000000002', '{}');
       UPDATE tasks SET status = 'running', attempts = 1, fence = 1, lease_until = now() - interval '1 minute',
           upstream_id = 'job-1' WHERE id = '018f0000-0000-7000-8000-000000000002'"#,
    // A task that was tried, with a job to resume, and the account's turn.
    r#"SELECT sample('018f0000-0000-7000-8000-000000000003', '{}');
       UPDATE tasks SET route = 'demo', jobs = '{job-2}', attempts = 1, fence = 2,
           tried = '[{"route": "demo", "class": "silent", "jobs": [], "duration_ms": 5}]'
           WHERE id = '018f0000-0000-7000-8000-000000000003';
       INSERT INTO turns VALUES ('018f0000-0000-7000-8000-00000000000a', now())"#,
    "SELECT sample('018f0000-0000-7000-8000-000000000004', '{}');
     UPDATE tasks SET waiter = 7, joined = 1 WHERE id = '018f0000-0000-7000-8000-000000000004'",
    r#"SELECT sample('018f0000-0000-7000-8000-000000000005',
           '{"references": [{"foreign": "https://images.example/1.png"}], "mask": {"foreign": "https://images.example/2.png"}}')"#,
    r#"SELECT sample('018f0000-0000-7000-8000-000000000006', '{}');
       UPDATE tasks SET status = 'failed', ended_at = now(), cost = 0, swept_at = now(),
           failure = '{"kind": "internal", "message": "it failed"}'
           WHERE id = '018f0000-0000-7000-8000-000000000006'"#,
    "INSERT INTO uploads (id, account_id, object, format, bytes, file_name, created_at, expires_at)
     VALUES (gen_random_uuid(), '018f0000-0000-7000-8000-00000000000a', 'uploads/1', 'png', 7, 'a.png', now(), now())",
    r#"SELECT sample('018f0000-0000-7000-8000-000000000007', '{}');
       UPDATE tasks SET tried = '[{"route": "demo", "class": "outcome_unknown", "jobs": [], "duration_ms": 5}]'
           WHERE id = '018f0000-0000-7000-8000-000000000007';
       DROP FUNCTION sample"#,
    // Another that has ended, and what it cost.
    r"INSERT INTO task_history (id, account_id, api_key_id, status, model, quality, resolution, ratio, n, unit_price,
           file_id, fingerprint, ended_at, cost, images, request)
       VALUES (uuid_of(now() + interval '2 days'), '018f0000-0000-7000-8000-00000000000a',
           '018f0000-0000-7000-8000-00000000000b', 'completed', 'gpt-image-2', 'medium', '1k', '1:1', 1, 200000,
           gen_random_uuid(), 'f', now(), 200000, '[{}]', '{}');
       INSERT INTO entries (account_id, task_id, kind, balance_change)
       SELECT account_id, id, 'capture', -cost FROM task_history WHERE cost > 0;
       UPDATE accounts SET balance = balance - 200000, spent = 200000",
    "UPDATE queue_turns SET turn = turn + 1",
    "INSERT INTO closed_partitions VALUES ('2019_12', '2020-01-01Z', true)",
];

/// A new migration comes with rows of its version in [`ROWS`].
#[tokio::test]
async fn the_data_of_every_version_stays_usable() {
    let database = TestDatabase::empty().await;
    let pool = PgPool::connect_with(database.options()).await.unwrap();
    assert_eq!(ALL.iter().count(), ROWS.len(), "each migration has rows");
    for (index, rows) in ROWS.into_iter().enumerate() {
        let version = Migrator {
            migrations: Cow::Owned(ALL.iter().take(index + 1).cloned().collect()),
            ..Migrator::DEFAULT
        };
        version.run(&pool).await.unwrap();
        pool.execute(rows).await.unwrap();
    }
    db::migrate(&pool).await.unwrap();

    let mut tx = db::begin(&pool, Patience::Much).await.unwrap();
    assert_eq!(store::requeue_lost(&mut tx, 3).await.unwrap(), 1);
    let waiting = queue_head(&mut tx, 10).await;
    let tried: usize = waiting.iter().map(|task| task.assignment.tried.len()).sum();
    assert_eq!((waiting.len(), tried), (6, 2));
    assert!(waiting.iter().any(|task| task.requirements == 101));
    let assignments = over_route(waiting, "demo");
    let lease = std::time::Duration::from_mins(1);
    let claimed = store::claim(&mut tx, assignments, lease).await.unwrap();
    assert_eq!(claimed.len(), 6);
    let ids: Vec<_> = ["018f0000-0000-7000-8000-000000000006".parse().unwrap()].into();
    let failed = store::ended_among(&mut tx, &ids).await.unwrap();
    assert!(failed[0].end.is_some());
    for (promise, broken) in ledger::faults(&mut tx, Scope::Everything).await.unwrap() {
        assert_eq!(broken, 0, "broken: {promise}");
    }
    tx.commit().await.unwrap();
}
