//! Submits and settles over a database, without the rest of the gateway.

use std::{sync::Arc, time::Duration};

use easel::{
    accounts::{Caller, store as accounts},
    billing::ledger::{self, Terms},
    db::{self, DatabaseTime, Patience},
    ids::{self, AccountId, TaskId},
    image::{AspectRatio, Format, Quality, Resolution},
    images::{
        Claimed,
        settle::{self, Finished, Settler},
        stored_inputs::StoredInputs,
        submit::{self, Generation, Repeat, Slot, Submission, SubmitError, Submitted, Submitter},
    },
    money::Cny,
    progress::Progress,
    storage::Key,
    tasks::{
        Ending, Failure, FailureKind, Image, Outcome, Request, Summary, Task, repeats, store,
        wait::Waiters,
    },
};
use futures_util::future::join_all;
use sqlx::PgPool;
use tokio::sync::{Semaphore, mpsc};

use crate::harness::{
    self,
    database::{TestDatabase, over_route, queue_head},
};

pub const TIME_ZONE: &str = "Asia/Shanghai";

/// Submission and settlement over one database.
pub struct Engine {
    pub pool: PgPool,
    submitter: Submitter,
    settler: Settler,
    claimed: mpsc::UnboundedReceiver<Claimed>,
    slots: Arc<Semaphore>,
    pub terms: Terms,
}

impl Engine {
    pub async fn open(database: &TestDatabase) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = harness::config(&dir, "", &[]);
        // Data that is lost with the server need not reach its disk.
        let options = database.options().options([("synchronous_commit", "off")]);
        let pool = easel::db::open(options, &config.database).await.unwrap();
        let terms = Terms {
            lease: Duration::from_mins(10),
            deadline: Duration::from_mins(100),
            time_zone: TIME_ZONE.to_owned(),
        };
        let (sender, claimed) = mpsc::unbounded_channel();
        let (zone, waiters) = (TIME_ZONE.to_owned(), Waiters::default());
        Self {
            submitter: submit::start(submit::SubmitBatch {
                pool: pool.clone(),
                waiters: waiters.clone(),
                progress: Progress::default(),
                claimed: sender,
                terms: terms.clone(),
                time: DatabaseTime::default(),
            }),
            settler: settle::start(settle::SettleBatch {
                pool: pool.clone(),
                waiters,
                progress: Progress::default(),
                time_zone: zone,
            }),
            pool: PgPool::clone(&pool),
            claimed,
            slots: Arc::new(Semaphore::new(1000)),
            terms,
        }
    }

    /// Creates an account.
    pub async fn account(&self, balance: Cny, quota: Option<Cny>) -> AccountId {
        let mut tx = db::begin(&self.pool, Patience::Much).await.unwrap();
        let id = accounts::insert(&mut tx, &ids::random_hex(), quota)
            .await
            .unwrap()
            .unwrap();
        ledger::top_up(&mut tx, id, balance).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Creates a key, with its limit of open tasks.
    pub async fn caller(&self, account_id: AccountId, concurrent: Option<u32>) -> Arc<Caller> {
        let mut conn = self.pool.acquire().await.unwrap();
        let (key, limits) = (
            easel::accounts::keys::generate(),
            accounts::KeyLimits::default(),
        );
        let key_id = accounts::insert_key(&mut conn, account_id, "test", &key, &limits)
            .await
            .unwrap();
        Arc::new(Caller {
            account_id,
            key_id,
            requests_per_minute: None,
            concurrent_requests: concurrent,
            inline_images: None,
        })
    }

    /// A slot of this process's worker, for a task that starts at once.
    pub fn slot(&self) -> Slot {
        Slot {
            permit: Arc::clone(&self.slots).try_acquire_owned().unwrap(),
            route: "demo".to_owned(),
        }
    }

    /// Claims the next tasks of the queue, as a worker does.
    pub async fn claim(&self, limit: i64) -> Vec<Task> {
        let mut tx = db::begin(&self.pool, Patience::Much).await.unwrap();
        assert!(store::lock_queue(&mut tx).await.unwrap());
        let waiting = queue_head(&mut tx, limit).await;
        let assignments = over_route(waiting, "demo");
        let lease = std::time::Duration::from_mins(10);
        let claims = store::claim(&mut tx, assignments, lease).await.unwrap();
        tx.commit().await.unwrap();
        claims.into_iter().map(|claim| claim.task).collect()
    }

    /// Submits all in one batch. On a single-threaded runtime, all are waiting before the first is processed.
    pub async fn submit(&mut self, batch: Vec<Submission>) -> Vec<Result<Submitted, SubmitError>> {
        let calls = batch.into_iter().map(|item| self.submitter.call(item));
        let answers = join_all(calls).await;
        while self.claimed.try_recv().is_ok() {}
        answers.into_iter().map(Result::unwrap).collect()
    }

    /// Settles all in one batch.
    pub async fn settle(&self, batch: Vec<(Task, Outcome)>) -> Vec<Option<Arc<Summary>>> {
        let calls = batch.into_iter().map(|(task, outcome)| {
            let (task, ending) = (Arc::new(task), Arc::new(Ending::of(outcome)));
            self.settler.call(Finished { task, ending })
        });
        join_all(calls)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }
}

/// A submission of `n` images at this unit price.
pub fn submission(caller: &Arc<Caller>, prompt: &str, n: u8, price: Cny) -> Submission {
    let request = Request {
        model: "gpt-image-2".to_owned(),
        prompt: prompt.to_owned(),
        n,
        ratio: AspectRatio::SQUARE,
        resolution: Resolution::OneK,
        size: AspectRatio::SQUARE.pixels(Resolution::OneK),
        quality: Quality::Medium,
        references: Vec::new(),
        mask: None,
        options: serde_json::Map::new(),
    };
    let fingerprint = repeats::fingerprint(&request).unwrap();
    Submission {
        id: ids::row_id(),
        generation: Generation {
            caller: Arc::clone(caller),
            request,
            inputs: StoredInputs::default(),
            unit_price: price,
            repeat: Repeat::No,
        },
        waiter: None,
        fingerprint,
        gone: Vec::new(),
        slot: None,
    }
}

/// An outcome with this many images; zero is a failure.
pub fn outcome(images: u8) -> Outcome {
    let image = |seq| Image {
        object: Key::image(TaskId::from(uuid::Uuid::nil()), 1, seq, Format::Png),
        format: Format::Png,
        bytes: 70,
        width: 1,
        height: 1,
    };
    if images == 0 {
        Outcome::Failed(Failure {
            kind: FailureKind::Upstream,
            message: "not generated".to_owned(),
        })
    } else {
        Outcome::Completed((1..=images).map(image).collect())
    }
}
