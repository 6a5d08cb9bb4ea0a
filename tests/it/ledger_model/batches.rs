//! Requests and settlements that share a transaction do not share failures.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use easel::{
    billing::ledger::{self, Acceptance, NewTask, Settling, Start},
    clock::Clock,
    db::{self, Patience},
    images::submit::{Repeat, Submission, SubmitError, Submitted},
    money::Cny,
    tasks::{Ending, Outcome, Status, Task, store},
};
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::engine::{Engine, TIME_ZONE, outcome, submission};
use crate::harness::database::{TestDatabase, task_rows};

const PRICE: Cny = Cny::from_micros(200_000);

#[tokio::test]
async fn a_failed_submission_affects_no_other() {
    let database = TestDatabase::create().await;
    let mut engine = Engine::open(&database).await;
    let account = engine.account(Cny::from_micros(500_000), None).await;
    let caller = engine.caller(account, None).await;
    let mut bad = submission(&caller, "bad", 1, PRICE);
    let options = &mut bad.generation.request.options;
    options.insert("user".to_owned(), json!("\0"));
    let mut joining = submission(&caller, "", 1, PRICE);
    joining.generation.request = bad.generation.request.clone();
    let mut named = submission(&caller, "good", 1, PRICE);
    for repeat in [&mut bad, &mut joining, &mut named] {
        repeat.generation.repeat = Repeat::Key("order-1".to_owned());
    }
    let good = submission(&caller, "good", 1, PRICE);
    let dear = submission(&caller, "dear", 10, PRICE);
    let answers = engine.submit(vec![bad, joining, named, good, dear]).await;
    // A request that would have joined the failed task is refused with it; its idempotency key is free.
    assert!(matches!(answers[0], Err(SubmitError::Database(_))));
    assert!(matches!(answers[1], Err(SubmitError::Database(_))));
    assert!(matches!(answers[2], Ok(Submitted::New(_))));
    assert!(matches!(answers[3], Ok(Submitted::New(_))));
    assert!(matches!(answers[4], Err(SubmitError::Refused(_))));
    let held: i64 = sqlx::query_scalar("SELECT held FROM accounts")
        .fetch_one(&engine.pool)
        .await
        .unwrap();
    assert_eq!(held, 400_000);
    assert_sound(&engine).await;
}

#[tokio::test]
async fn a_refused_price_is_not_an_open_task_of_its_key() {
    let database = TestDatabase::create().await;
    let mut engine = Engine::open(&database).await;
    let account = engine.account(PRICE, None).await;
    let caller = engine.caller(account, Some(1)).await;
    let dear = submission(&caller, "dear", 2, PRICE);
    let fair = submission(&caller, "fair", 1, PRICE);
    let further = submission(&caller, "further", 1, PRICE);
    let answers = engine.submit(vec![dear, fair, further]).await;
    assert!(matches!(answers[0], Err(SubmitError::Refused(_))));
    assert!(matches!(answers[1], Ok(Submitted::New(_))));
    assert!(matches!(
        answers[2],
        Err(SubmitError::Concurrency { limit: 1 })
    ));
    assert_sound(&engine).await;
}

#[tokio::test]
async fn a_failed_settlement_affects_no_other() {
    let database = TestDatabase::create().await;
    let mut engine = Engine::open(&database).await;
    let account = engine.account(Cny::from_micros(1_000_000), None).await;
    let caller = engine.caller(account, None).await;
    let batch = ["a", "b", "c"].map(|prompt| Submission {
        slot: Some(engine.slot()),
        ..submission(&caller, prompt, 1, PRICE)
    });
    let ids: Vec<_> = batch.iter().map(|submission| submission.id).collect();
    engine.submit(batch.into()).await;
    let mut tasks = tasks(&engine, &ids).await;
    let mut bad = outcome(0);
    if let Outcome::Failed(failure) = &mut bad {
        failure.message = "\0".to_owned();
    }
    let outcomes = [outcome(1), bad, outcome(0)];
    let answers = engine.settle(tasks.drain(..).zip(outcomes).collect()).await;
    let ended: Vec<_> = answers.iter().map(Option::is_some).collect();
    assert_eq!(ended, [true, false, true]);
    assert_sound(&engine).await;

    // Its hold remains, and it ends like a task whose worker is lost.
    let lost = self::tasks(&engine, &ids[1..2]).await.remove(0);
    assert_eq!(lost.status, Status::Running);
    assert!(engine.settle(vec![(lost, outcome(0))]).await[0].is_some());
    let (balance, held): (i64, i64) = sqlx::query_as("SELECT balance, held FROM accounts")
        .fetch_one(&engine.pool)
        .await
        .unwrap();
    assert_eq!((balance, held), (800_000, 0));
    assert_sound(&engine).await;
}

#[tokio::test]
async fn of_two_endings_in_one_batch_only_that_of_the_latest_claim_counts() {
    let database = TestDatabase::create().await;
    let mut engine = Engine::open(&database).await;
    let account = engine.account(Cny::from_micros(1_000_000), None).await;
    let caller = engine.caller(account, None).await;
    let one = submission(&caller, "a", 4, PRICE);
    let ids = [one.id];
    engine.submit(vec![one]).await;
    let mut conn = engine.pool.acquire().await.unwrap();
    let first = engine.claim(1).await.remove(0);
    store::release_claims(&mut conn, &[(first.id, first.fence)])
        .await
        .unwrap();
    let second = engine.claim(1).await.remove(0);
    drop(conn);
    let answers = engine
        .settle(vec![(second, outcome(3)), (first, outcome(1))])
        .await;
    for summary in answers.into_iter().flatten() {
        assert_eq!(summary.images().len(), 3);
    }
    let mut conn = engine.pool.acquire().await.unwrap();
    let task = store::summaries(&mut conn, &ids)
        .await
        .unwrap()
        .remove(0)
        .1
        .unwrap();
    assert_eq!(task.images().len(), 3);
    assert_sound(&engine).await;
}

/// As after a black hole on its way: the request may have been answered long ago.
#[tokio::test]
async fn a_statement_that_arrives_too_late_accepts_nothing() {
    let database = TestDatabase::create().await;
    let engine = Engine::open(&database).await;
    let account = engine.account(PRICE, None).await;
    let caller = engine.caller(account, None).await;
    let submission = submission(&caller, "late", 1, PRICE);
    let task = NewTask {
        id: submission.id,
        account_id: account,
        api_key_id: caller.key_id,
        request: submission.generation.request,
        requirements: 0,
        unit_price: PRICE,
        file_id: easel::ids::credential_id().into(),
        idempotency_key: None,
        fingerprint: submission.fingerprint,
        start: Start::Queued,
        waiter: None,
        joined: 0,
    };
    let mut conn = engine.pool.acquire().await.unwrap();
    let mut accept = async |until: DateTime<Utc>| {
        let acceptance = Acceptance {
            patience: Patience::Much,
            until: Some(until),
        };
        let accepted = ledger::accept(&mut conn, &[&task], &engine.terms, acceptance).await;
        accepted.unwrap().len()
    };
    let now = Clock::default().now();

    assert_eq!(accept(now).await, 0);
    assert_sound(&engine).await;
    assert_eq!(accept(now + TimeDelta::minutes(1)).await, 1);
    drop(conn);
    assert_sound(&engine).await;
}

/// Both lock the rows of many tasks, in whatever order they know them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_and_settlements_do_not_deadlock() {
    let database = TestDatabase::create().await;
    let mut engine = Engine::open(&database).await;
    let account = engine.account(Cny::from_micros(60_000_000), None).await;
    let caller = engine.caller(account, None).await;
    let batch = (0..300).map(|n| submission(&caller, &n.to_string(), 1, PRICE));
    engine.submit(batch.collect()).await;
    let claims = engine.claim(300).await;
    let upwards: Vec<_> = claims.iter().map(|task| (task.id, task.fence)).collect();
    let downwards: Vec<_> = upwards.iter().rev().copied().collect();
    let (pool, ending) = (&engine.pool, &Ending::of(outcome(1)));
    let (upwards, downwards) = (&upwards, &downwards);

    let rounds = (0..40).map(|round| async move {
        let (renewed, ended) = match round % 2 {
            0 => (upwards, downwards),
            _ => (downwards, upwards),
        };
        let renew = async {
            let mut tx = db::begin(pool, Patience::Much).await?;
            let renewed = store::renew(&mut tx, renewed, Duration::from_mins(10)).await?;
            tx.commit().await?;
            Ok::<_, sqlx::Error>(renewed.len())
        };
        let end = async {
            let endings: Vec<_> = ended.iter().map(|claim| (*claim, ending)).collect();
            let mut tx = db::begin(pool, Patience::Much).await?;
            let settling = Settling {
                time_zone: TIME_ZONE,
                process: 0,
                patience: Patience::Much,
            };
            let ended = ledger::settle(&mut tx, &endings, settling).await?;
            tx.rollback().await?;
            Ok::<_, sqlx::Error>(ended.len())
        };
        tokio::try_join!(renew, end)
    });

    // Two rounds at a time, each over two connections.
    let rounds: Vec<_> = stream::iter(rounds).buffered(2).collect().await;
    for round in rounds {
        assert_eq!(round.unwrap(), (300, 300));
    }
    assert_sound(&engine).await;
}

async fn tasks(engine: &Engine, ids: &[easel::ids::TaskId]) -> Vec<Task> {
    let mut conn = engine.pool.acquire().await.unwrap();
    task_rows(&mut conn, ids).await
}

async fn assert_sound(engine: &Engine) {
    let mut conn = engine.pool.acquire().await.unwrap();
    for (promise, broken) in ledger::faults(&mut conn, ledger::Scope::Everything)
        .await
        .unwrap()
    {
        assert_eq!(broken, 0, "broken: {promise}");
    }
}
