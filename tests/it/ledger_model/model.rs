//! The rules for money and tasks, in so few lines that they are evidently right.

use proptest::{prelude::*, sample::Index};
use proptest_state_machine::ReferenceStateMachine;

/// The account that pays for each key.
pub const PAYERS: [usize; 3] = [0, 0, 1];
/// How many open tasks each key may have.
pub const OPEN_MAX: [Option<u32>; 3] = [None, Some(3), None];
/// The monthly quota of each account, in micro-CNY.
pub const QUOTAS: [Option<i64>; 2] = [None, Some(1_500_000)];
/// The opening balance of each account, in micro-CNY.
pub const OPENING: [i64; 2] = [2_000_000, 5_000_000];
pub const ATTEMPTS_MAX: i16 = 3;

/// The expected state.
#[derive(Clone, Debug)]
pub struct Model {
    pub accounts: [Account; 2],
    /// Which keys are revoked.
    pub revoked: [bool; 3],
    pub price: i64,
    pub tasks: Vec<Task>,
    /// The expected answers to the last submissions.
    pub answers: Vec<Answer>,
    /// The latest turn of which a task was claimed.
    turn: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub balance: i64,
    pub held: i64,
    /// The sum of all captures.
    pub spent: i64,
    pub month_spend: i64,
}

#[derive(Clone, Debug)]
pub struct Task {
    key: usize,
    prompt: u8,
    name: Option<u8>,
    /// A retry joined it or created it.
    joined: bool,
    pub n: u8,
    price: i64,
    pub state: State,
    pub fence: i64,
    pub attempts: i16,
    turn: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Queued,
    Running,
    Completed { cost: i64 },
    Failed,
}

/// The answer to a submission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    New(usize),
    Joined(usize),
    NameReused,
    TooManyOpen,
    NoKey,
    NoBalance,
    NoQuota,
}

/// One step of a test run.
#[derive(Clone, Debug)]
pub enum Step {
    TopUp {
        account: usize,
        micros: i64,
    },
    Price(i64),
    Revoke(usize),
    Submit(Vec<Ask>),
    Claim(usize),
    Settle(Vec<Finish>),
    /// All workers are lost, and their tasks are requeued or failed.
    LoseLeases,
    NewMonth(usize),
}

/// A submission.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The index of the key.
    pub key: usize,
    /// Selects the prompt and the number of images: equal values are equal requests.
    pub prompt: u8,
    pub repeat: Repeats,
    /// Whether it starts at once, if accepted.
    pub claimed: bool,
}

/// How a request can repeat an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repeats {
    No,
    Name(u8),
    Retry,
}

/// A worker, which may have lost the task meanwhile, ends it.
#[derive(Clone, Debug)]
pub struct Finish {
    pub task: Index,
    /// Whether the worker has lost the task meanwhile.
    pub stale: bool,
    images: u8,
}

impl Ask {
    pub fn n(&self) -> u8 {
        self.prompt + 1
    }
}

impl Finish {
    /// How many images it delivers of a task that wants `n`: none to all.
    pub fn images(&self, n: u8) -> u8 {
        self.images % (n + 1)
    }
}

impl Task {
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Queued | State::Running)
    }

    fn total(&self) -> i64 {
        self.price * i64::from(self.n)
    }
}

impl Model {
    fn ask(&mut self, ask: &Ask) -> Answer {
        if let Some(answer) = self.earlier(ask) {
            if let (Answer::Joined(index), Repeats::Retry) = (answer, ask.repeat) {
                self.tasks[index].joined = true;
            }
            return answer;
        }
        let (price, n) = (self.price, ask.n());
        let total = price * i64::from(n);
        let open = self
            .tasks
            .iter()
            .filter(|t| t.key == ask.key && t.is_open());
        let open = open.count();
        if OPEN_MAX[ask.key].is_some_and(|limit| open >= limit as usize) {
            return Answer::TooManyOpen;
        }
        if self.revoked[ask.key] {
            return Answer::NoKey;
        }
        let payer = PAYERS[ask.key];
        let account = &mut self.accounts[payer];
        if total > account.balance - account.held {
            return Answer::NoBalance;
        }
        if QUOTAS[payer].is_some_and(|quota| total > quota - account.month_spend - account.held) {
            return Answer::NoQuota;
        }
        account.held += total;
        let begun = i16::from(ask.claimed);
        let mut turn = 0;
        if !ask.claimed {
            let queued = self
                .tasks
                .iter()
                .filter(|task| task.state == State::Queued && PAYERS[task.key] == payer);
            let latest = queued.map(|task| task.turn).max();
            turn = latest.unwrap_or_default().max(self.turn) + 1;
        }
        self.tasks.push(Task {
            key: ask.key,
            prompt: ask.prompt,
            name: match ask.repeat {
                Repeats::Name(name) => Some(name),
                Repeats::No | Repeats::Retry => None,
            },
            joined: matches!(ask.repeat, Repeats::Retry),
            n,
            price,
            state: if ask.claimed {
                State::Running
            } else {
                State::Queued
            },
            fence: i64::from(begun),
            attempts: begun,
            turn,
        });
        Answer::New(self.tasks.len() - 1)
    }

    fn earlier(&self, ask: &Ask) -> Option<Answer> {
        let mut newest_first = self.tasks.iter().enumerate().rev();
        match ask.repeat {
            Repeats::No => None,
            Repeats::Name(name) => newest_first
                .find(|(_, task)| task.key == ask.key && task.name == Some(name))
                .map(|(index, task)| {
                    if task.prompt == ask.prompt {
                        Answer::Joined(index)
                    } else {
                        Answer::NameReused
                    }
                }),
            Repeats::Retry => self
                .tasks
                .iter()
                .enumerate()
                .filter(|(_, task)| {
                    task.key == ask.key
                        && task.prompt == ask.prompt
                        && task.state != State::Failed
                        && !task.joined
                })
                .max_by_key(|(index, task)| (task.is_open(), *index))
                .map(|(index, _)| Answer::Joined(index)),
        }
    }

    /// Accounts take turns: each queued task has the turn after its account's last one, or after the latest claimed.
    fn claim(&mut self, limit: usize) {
        let mut queue: Vec<_> = self.tasks.iter_mut().collect();
        queue.retain(|task| task.state == State::Queued);
        queue.sort_by_key(|task| task.turn);
        for task in queue.into_iter().take(limit) {
            self.turn = self.turn.max(task.turn);
            task.state = State::Running;
            task.fence += 1;
            task.attempts += 1;
        }
    }

    fn end(&mut self, index: usize, images: u8) {
        let task = &mut self.tasks[index];
        if !task.is_open() {
            return;
        }
        let payer = PAYERS[task.key];
        let account = &mut self.accounts[payer];
        let cost = task.price * i64::from(images);
        account.held -= task.total();
        account.balance -= cost;
        account.spent += cost;
        account.month_spend += cost;
        task.state = if images == 0 {
            State::Failed
        } else {
            State::Completed { cost }
        };
    }

    fn settle(&mut self, finishes: &[Finish]) {
        // If several end one task, the first counts; workers that lost it never do.
        for finish in finishes.iter().filter(|finish| !finish.stale) {
            if !self.tasks.is_empty() {
                let index = finish.task.index(self.tasks.len());
                self.end(index, finish.images(self.tasks[index].n));
            }
        }
    }

    fn lose_leases(&mut self) {
        for index in 0..self.tasks.len() {
            let task = &mut self.tasks[index];
            match task.state {
                State::Running if task.attempts < ATTEMPTS_MAX => {
                    task.state = State::Queued;
                    // Workers that lost it can no longer end it, although no other has claimed it yet.
                    task.fence += 1;
                }
                State::Running => self.end(index, 0),
                State::Queued | State::Completed { .. } | State::Failed => {}
            }
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let account = |balance| Account {
            balance,
            held: 0,
            spent: 0,
            month_spend: 0,
        };
        Just(Self {
            accounts: OPENING.map(account),
            revoked: [false; 3],
            price: 200_000,
            tasks: Vec::new(),
            answers: Vec::new(),
            turn: 0,
        })
        .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let repeat = prop_oneof![
            Just(Repeats::No),
            (0..2_u8).prop_map(Repeats::Name),
            Just(Repeats::Retry)
        ];
        let ask = (0..3_usize, 0..4_u8, repeat, any::<bool>()).prop_map(
            |(key, prompt, repeat, claimed)| Ask {
                key,
                prompt,
                repeat,
                claimed,
            },
        );
        let finish = (any::<Index>(), prop::bool::weighted(0.2), 0..=16_u8).prop_map(
            |(task, stale, images)| Finish {
                task,
                stale,
                images,
            },
        );
        let prices = [0, 1, 100_000, 200_000, 350_000];
        prop_oneof![
            3 => (0..2_usize, -1_500_000..2_000_000_i64)
                .prop_map(|(account, micros)| Step::TopUp { account, micros }),
            2 => prop::sample::select(prices.to_vec()).prop_map(Step::Price),
            1 => prop::bool::weighted(0.2).prop_flat_map(|revoke| {
                if revoke { (0..3_usize).prop_map(Step::Revoke).boxed() } else { Just(Step::LoseLeases).boxed() }
            }),
            10 => prop::collection::vec(ask, 1..7).prop_map(Step::Submit),
            5 => (1..5_usize).prop_map(Step::Claim),
            8 => prop::collection::vec(finish, 1..6).prop_map(Step::Settle),
            2 => Just(Step::LoseLeases),
            1 => (0..2_usize).prop_map(Step::NewMonth),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answers.clear();
        match step {
            Step::TopUp { account, micros } => {
                let account = &mut state.accounts[*account];
                if account.balance + micros >= account.held {
                    account.balance += micros;
                }
            }
            Step::Price(micros) => state.price = *micros,
            Step::Revoke(key) => state.revoked[*key] = true,
            Step::Submit(asks) => {
                for ask in asks {
                    let answer = state.ask(ask);
                    state.answers.push(answer);
                }
            }
            Step::Claim(limit) => state.claim(*limit),
            Step::Settle(finishes) => state.settle(finishes),
            Step::LoseLeases => state.lose_leases(),
            Step::NewMonth(account) => state.accounts[*account].month_spend = 0,
        }
        state
    }
}
