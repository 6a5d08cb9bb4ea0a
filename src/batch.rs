//! Lets concurrent callers share one piece of work, such as a transaction: while one batch is under
//! way, the next one collects. A single item never waits for others.
//!
//! An error caused by one item must not affect the others: the batch is taken apart, and each
//! account's items, including new ones, continue in a lane of their own.

use std::{
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use crate::ids::AccountId;

/// If a batch in an account's own lane takes less than this, the lane is closed.
const BRIEF: Duration = Duration::from_millis(200);

/// Passes items to a loop that works on all waiting items in batches.
pub struct Batcher<T, R> {
    shared: Queue<T, R>,
    own: Arc<OwnLanes<T, R>>,
}

/// The loop has ended or lost the item.
#[derive(Debug, thiserror::Error)]
#[error("the gateway is shutting down")]
pub struct Closed;

/// Whose items a batch contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Items of any account.
    Shared,
    /// Items of one account that delayed others.
    Own,
}

/// The answers to a batch's items, in order; or the items, to be taken apart (from the shared lane only).
pub type Worked<T, R> = Result<Vec<R>, Vec<T>>;

type Queue<T, R> = mpsc::UnboundedSender<(T, oneshot::Sender<R>)>;
type Waiting<T, R> = mpsc::UnboundedReceiver<(T, oneshot::Sender<R>)>;

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts a loop with only the shared lane.
    ///
    /// `work` answers each item of a batch, in order.
    pub fn start<F, Fut>(size_max: usize, work: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let work = Arc::new(work);
        let account_of = |_: &T| AccountId::from(uuid::Uuid::nil());
        Self::start_with_lanes(size_max, account_of, move |items, _| {
            let work = Arc::clone(&work);
            async move { Ok(work(items).await) }
        })
    }

    /// Starts the loop. An accepted item is processed even if its caller stops waiting.
    pub fn start_with_lanes<F, Fut>(
        size_max: usize,
        account_of: fn(&T) -> AccountId,
        work: F,
    ) -> Self
    where
        F: Fn(Vec<T>, Lane) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Worked<T, R>> + Send + 'static,
    {
        let work = Arc::new(work);
        let worker = Arc::clone(&work);
        let own = Arc::new(OwnLanes {
            open: Mutex::default(),
            account_of,
            start: Box::new(move |lanes, account| {
                let (queue, waiting) = mpsc::unbounded_channel();
                let work = Arc::clone(&worker);
                spawn(work_alone(waiting, size_max, work, lanes, account));
                queue
            }),
        });
        let (shared, waiting) = mpsc::unbounded_channel();
        spawn(work_together(waiting, size_max, work, Arc::downgrade(&own)));
        Self { shared, own }
    }

    /// Has one item processed, and returns its answer.
    pub async fn call(&self, item: T) -> Result<R, Closed> {
        let (reply, answer) = oneshot::channel();
        let own = self.own.of(&item);
        let queue = own.as_ref().unwrap_or(&self.shared);
        if queue.send((item, reply)).is_err() {
            return Err(Closed);
        }
        answer.await.or(Err(Closed))
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            own: Arc::clone(&self.own),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the loop ends with its last handle; work that must finish before a shutdown awaits its answer"
)]
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

type StartLine<T, R> =
    Box<dyn Fn(std::sync::Weak<OwnLanes<T, R>>, AccountId) -> Queue<T, R> + Send + Sync>;

/// The open lanes of single accounts.
struct OwnLanes<T, R> {
    open: Mutex<HashMap<AccountId, Queue<T, R>>>,
    account_of: fn(&T) -> AccountId,
    start: StartLine<T, R>,
}

impl<T, R> OwnLanes<T, R> {
    /// The lane of the item's account, if it has one at present.
    fn of(&self, item: &T) -> Option<Queue<T, R>> {
        let open = self.lock();
        if open.is_empty() {
            return None;
        }
        open.get(&(self.account_of)(item)).cloned()
    }

    fn add(self: &Arc<Self>, item: T, reply: oneshot::Sender<R>) {
        let account = (self.account_of)(&item);
        let mut open = self.lock();
        let queue = open
            .entry(account)
            .or_insert_with(|| (self.start)(Arc::downgrade(self), account));
        // The receiver lives for as long as the lane is open.
        drop(queue.send((item, reply)));
    }

    /// Items already sent to the lane are still processed there.
    fn close(&self, account: AccountId) {
        self.lock().remove(&account);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AccountId, Queue<T, R>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn work_together<T, R, F, Fut>(
    mut waiting: Waiting<T, R>,
    size_max: usize,
    work: Arc<F>,
    own: std::sync::Weak<OwnLanes<T, R>>,
) where
    F: Fn(Vec<T>, Lane) -> Fut,
    Fut: Future<Output = Worked<T, R>>,
{
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, size_max).await > 0 {
        let (items, replies) = take(&mut batch);
        if items.is_empty() {
            continue;
        }
        // A panic in one batch must not end the loop: its callers get `Closed`.
        let worked = AssertUnwindSafe(work(items, Lane::Shared)).catch_unwind();
        match worked.await.unwrap_or_else(|_| Ok(Vec::new())) {
            Ok(answers) => answer(replies, answers),
            Err(items) => {
                let Some(own) = own.upgrade() else { return };
                for (item, reply) in items.into_iter().zip(replies) {
                    own.add(item, reply);
                }
            }
        }
    }
}

async fn work_alone<T, R, F, Fut>(
    mut waiting: Waiting<T, R>,
    size_max: usize,
    work: Arc<F>,
    lanes: std::sync::Weak<OwnLanes<T, R>>,
    account: AccountId,
) where
    F: Fn(Vec<T>, Lane) -> Fut,
    Fut: Future<Output = Worked<T, R>>,
{
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, size_max).await > 0 {
        let (items, replies) = take(&mut batch);
        if items.is_empty() {
            continue;
        }
        let began = Instant::now();
        let worked = AssertUnwindSafe(work(items, Lane::Own)).catch_unwind();
        let answers = worked.await.unwrap_or_else(|_| Ok(Vec::new()));
        answer(replies, answers.unwrap_or_default());
        if began.elapsed() < BRIEF
            && let Some(lanes) = lanes.upgrade()
        {
            lanes.close(account);
        }
    }
}

type Batch<T, R> = (Vec<T>, Vec<oneshot::Sender<R>>);

/// Skips items whose callers stopped waiting before the work began.
fn take<T, R>(batch: &mut Vec<(T, oneshot::Sender<R>)>) -> Batch<T, R> {
    let still_wanted = batch.drain(..).filter(|(_, reply)| !reply.is_closed());
    still_wanted.unzip()
}

fn answer<R>(replies: Vec<oneshot::Sender<R>>, answers: Vec<R>) {
    for (reply, answer) in replies.into_iter().zip(answers) {
        // A caller that stopped waiting needs no answer.
        drop(reply.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::ids::row_id;

    #[tokio::test]
    async fn a_stuck_account_does_not_delay_others() {
        let (stuck, free) = (row_id(), row_id());
        let gate = Arc::new(Semaphore::new(0));
        let taken_apart = Arc::new(AtomicU32::new(0));
        let (held, apart) = (Arc::clone(&gate), Arc::clone(&taken_apart));
        let batcher = Batcher::start_with_lanes(
            8,
            |account: &AccountId| *account,
            move |accounts, lane| {
                let (gate, apart) = (Arc::clone(&held), Arc::clone(&apart));
                async move {
                    if !accounts.contains(&stuck) {
                        return Ok(accounts);
                    }
                    if lane == Lane::Shared {
                        apart.fetch_add(1, Ordering::Relaxed);
                        return Err(accounts);
                    }
                    gate.acquire().await.unwrap().forget();
                    Ok(accounts)
                }
            },
        );
        let waiting = join_all([batcher.call(stuck), batcher.call(stuck)]);
        let mut waiting = std::pin::pin!(waiting);
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = waiting.as_mut() => panic!("it is held"),
                answer = batcher.call(free) => assert_eq!(answer.unwrap(), free),
            }
        }
        assert_eq!(
            taken_apart.load(Ordering::Relaxed),
            1,
            "once, then not again"
        );
        gate.add_permits(2);
        for answer in waiting.await {
            assert_eq!(answer.unwrap(), stuck);
        }
    }

    #[tokio::test]
    async fn a_panic_in_a_batch_does_not_end_the_loop() {
        let batcher = Batcher::start(8, |items: Vec<u32>| async move {
            assert!(!items.contains(&13), "unlucky");
            items
        });
        assert!(batcher.call(13).await.is_err());
        assert_eq!(batcher.call(7).await.unwrap(), 7);
    }
}
