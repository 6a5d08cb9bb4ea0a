//! The real ledger on a real PostgreSQL matches a small model of it, step by step, and all invariants hold after each
//! step.

mod batches;
mod engine;
mod model;

use std::{collections::HashSet, sync::Arc, sync::OnceLock};

use easel::{
    accounts::{Caller, store as accounts},
    billing::{Refusal, ledger},
    ids::{AccountId, TaskId},
    images::submit::{Repeat, Submission, SubmitError, Submitted},
    money::Cny,
    tasks::{Task, store},
};
use proptest::test_runner::Config;
use proptest_state_machine::{StateMachineTest, prop_state_machine};
use sqlx::Executor;
use tokio::runtime::{self, Runtime};

use crate::harness::database::{TestDatabase, task_rows};
use engine::{Engine, TIME_ZONE, outcome, submission};
use model::{
    ATTEMPTS_MAX, Answer, Ask, Finish, Model, OPEN_MAX, OPENING, PAYERS, QUOTAS, Repeats, State,
    Step,
};

prop_state_machine! {
    #![proptest_config(Config {
        cases: 64,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    })]

    #[test]
    fn the_ledger_matches_its_model(sequential 20..40 => System);
}

/// The system that the model is compared with.
struct System {
    runtime: Runtime,
    ledger: Ledger,
}

struct Ledger {
    engine: Engine,
    accounts: Vec<AccountId>,
    callers: Vec<Arc<Caller>>,
    /// In the order of the model's numbers.
    tasks: Vec<TaskId>,
}

impl StateMachineTest for System {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ledger = runtime.block_on(Ledger::open());
        Self { runtime, ledger }
    }

    fn apply(mut system: Self, model: &Model, step: Step) -> Self {
        system.runtime.block_on(system.ledger.take(model, step));
        system
    }

    fn check_invariants(system: &Self, model: &Model) {
        system.runtime.block_on(system.ledger.compare(model));
    }
}

impl Ledger {
    async fn open() -> Self {
        static DATABASE: OnceLock<TestDatabase> = OnceLock::new();
        if DATABASE.get().is_none() {
            drop(DATABASE.set(TestDatabase::create().await));
        }
        let engine = Engine::open(DATABASE.get().unwrap()).await;
        engine
            .pool
            .execute("TRUNCATE entries, open_tasks, task_history, unswept_tasks, uploads, api_keys, accounts")
            .await
            .unwrap();
        let (mut accounts, mut callers) = (Vec::new(), Vec::new());
        for (balance, quota) in OPENING.into_iter().zip(QUOTAS) {
            let quota = quota.map(Cny::from_micros);
            accounts.push(engine.account(Cny::from_micros(balance), quota).await);
        }
        for (payer, open_max) in PAYERS.into_iter().zip(OPEN_MAX) {
            callers.push(engine.caller(accounts[payer], open_max).await);
        }
        Self {
            engine,
            accounts,
            callers,
            tasks: Vec::new(),
        }
    }

    async fn take(&mut self, model: &Model, step: Step) {
        match step {
            Step::TopUp { account, micros } => self.top_up(account, micros).await,
            Step::Price(_) => {}
            Step::Revoke(key) => {
                let mut conn = self.engine.pool.acquire().await.unwrap();
                let key = self.callers[key].key_id;
                accounts::revoke_key(&mut conn, key).await.unwrap().unwrap();
            }
            Step::Submit(asks) => self.submit(model, &asks).await,
            Step::Claim(limit) => {
                self.engine.claim(i64::try_from(limit).unwrap()).await;
            }
            Step::Settle(finishes) => self.settle(model, &finishes).await,
            Step::LoseLeases => self.lose_leases().await,
            Step::NewMonth(account) => {
                sqlx::query(
                    "UPDATE accounts SET month = (month - interval '1 month')::date WHERE id = $1",
                )
                .bind(self.accounts[account])
                .execute(&self.engine.pool)
                .await
                .unwrap();
            }
        }
    }

    /// The balance shows whether it was accepted.
    async fn top_up(&self, account: usize, micros: i64) {
        let mut conn = self.engine.pool.acquire().await.unwrap();
        let amount = Cny::from_micros(micros);
        match ledger::top_up(&mut conn, self.accounts[account], amount).await {
            Ok(balance) => assert!(balance.is_some()),
            Err(error) => {
                let error = error.into_database_error().unwrap();
                assert_eq!(error.constraint(), Some("accounts_held_check"));
            }
        }
    }

    async fn submit(&mut self, model: &Model, asks: &[Ask]) {
        let batch: Vec<Submission> = asks.iter().map(|ask| self.submission(model, ask)).collect();
        let answers = self.engine.submit(batch).await;
        assert_eq!(answers.len(), model.answers.len());
        for (answer, expected) in answers.into_iter().zip(&model.answers) {
            assert_eq!(self.answer(answer), *expected);
        }
    }

    fn submission(&self, model: &Model, ask: &Ask) -> Submission {
        let (caller, price) = (&self.callers[ask.key], Cny::from_micros(model.price));
        let mut submission = submission(caller, &ask.prompt.to_string(), ask.n(), price);
        submission.generation.repeat = match ask.repeat {
            Repeats::No => Repeat::No,
            Repeats::Name(name) => Repeat::Key(name.to_string()),
            Repeats::Retry => Repeat::Retry(1),
        };
        submission.slot = ask.claimed.then(|| self.engine.slot());
        submission
    }

    fn answer(&mut self, answer: Result<Submitted, SubmitError>) -> Answer {
        match answer {
            Ok(Submitted::New(id)) => {
                self.tasks.push(id);
                Answer::New(self.tasks.len() - 1)
            }
            Ok(Submitted::Joined(id)) => {
                Answer::Joined(self.tasks.iter().position(|task| *task == id).unwrap())
            }
            Err(SubmitError::KeyReused) => Answer::NameReused,
            Err(SubmitError::Concurrency { .. }) => Answer::TooManyOpen,
            Err(SubmitError::Refused(Refusal::Key)) => Answer::NoKey,
            Err(SubmitError::Refused(Refusal::Balance { .. })) => Answer::NoBalance,
            Err(SubmitError::Refused(Refusal::Quota { .. })) => Answer::NoQuota,
            Err(error @ (SubmitError::Abandoned | SubmitError::Database(_))) => panic!("{error:?}"),
        }
    }

    /// The task as it is now, as the worker that claimed it knows it.
    async fn task(&self, index: usize) -> Task {
        let mut conn = self.engine.pool.acquire().await.unwrap();
        task_rows(&mut conn, &[self.tasks[index]]).await.remove(0)
    }

    async fn settle(&self, model: &Model, finishes: &[Finish]) {
        if self.tasks.is_empty() {
            return;
        }
        let (mut batch, mut mine) = (Vec::new(), HashSet::new());
        for finish in finishes {
            let index = finish.task.index(self.tasks.len());
            let task = self.task(index).await;
            let fence = task.fence - i64::from(finish.stale);
            if !finish.stale {
                mine.insert(task.id);
            }
            batch.push((
                Task { fence, ..task },
                outcome(finish.images(model.tasks[index].n)),
            ));
        }
        let asked: Vec<TaskId> = batch.iter().map(|(task, _)| task.id).collect();
        let answers = self.engine.settle(batch).await;
        for (id, answer) in asked.into_iter().zip(answers) {
            assert_eq!(answer.is_some(), mine.contains(&id));
            let Some(end) = answer.as_ref().and_then(|task| task.end.as_ref()) else {
                continue;
            };
            let index = self.tasks.iter().position(|task| *task == id).unwrap();
            assert_eq!(end.cost.micros(), cost(model.tasks[index].state).unwrap());
        }
    }

    async fn lose_leases(&self) {
        let mut conn = self.engine.pool.acquire().await.unwrap();
        conn.execute(
            "UPDATE open_tasks SET lease_until = now() - interval '1 second' WHERE status = 'running'",
        )
        .await
        .unwrap();
        store::requeue_lost(&mut conn, ATTEMPTS_MAX).await.unwrap();
        let exhausted = store::Overdue::Exhausted {
            attempts_max: ATTEMPTS_MAX,
        };
        let overdue = store::overdue(&mut conn, exhausted, &[], 1000)
            .await
            .unwrap();
        let ids: Vec<TaskId> = overdue.iter().map(|task| task.id).collect();
        let exhausted = task_rows(&mut conn, &ids).await;
        drop(conn);
        let batch = exhausted.into_iter().map(|task| (task, outcome(0)));
        for ended in self.engine.settle(batch.collect()).await {
            assert!(ended.is_some());
        }
    }

    async fn compare(&self, model: &Model) {
        let mut conn = self.engine.pool.acquire().await.unwrap();
        for (promise, broken) in ledger::faults(&mut conn, ledger::Scope::Everything)
            .await
            .unwrap()
        {
            assert_eq!(broken, 0, "broken: {promise}");
        }
        for ((id, expected), quota) in self.accounts.iter().zip(&model.accounts).zip(QUOTAS) {
            let found = accounts::get(&mut conn, *id, TIME_ZONE)
                .await
                .unwrap()
                .unwrap();
            let found = model::Account {
                balance: found.balance.micros(),
                held: found.held.micros(),
                spent: found.spent.micros(),
                month_spend: found.month_spend.micros(),
            };
            assert_eq!(found, *expected);
            assert!(0 <= found.held && found.held <= found.balance);
            assert!(quota.is_none_or(|quota| found.month_spend + found.held <= quota));
        }
        let rows: Vec<(TaskId, String, i64, i16, Option<i64>)> =
            sqlx::query_as("SELECT id, status, fence, attempts, cost FROM tasks ORDER BY id")
                .fetch_all(&mut *conn)
                .await
                .unwrap();
        let expected: Vec<_> = model
            .tasks
            .iter()
            .zip(&self.tasks)
            .map(|(task, id)| {
                let status = match task.state {
                    State::Queued => "queued",
                    State::Running => "running",
                    State::Completed { .. } => "completed",
                    State::Failed => "failed",
                };
                (
                    *id,
                    status.to_owned(),
                    task.fence,
                    task.attempts,
                    cost(task.state),
                )
            })
            .collect();
        assert_eq!(rows, expected);
        assert_eq!(self.tasks.len(), model.tasks.len());
    }
}

fn cost(state: State) -> Option<i64> {
    match state {
        State::Queued | State::Running => None,
        State::Completed { cost } => Some(cost),
        State::Failed => Some(0),
    }
}
