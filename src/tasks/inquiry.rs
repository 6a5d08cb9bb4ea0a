//! Asks other processes which callers have left them. The database says where the caller of a task waited, but a
//! process that cannot reach the database does not record that a caller has left. Silence means that all have.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::oneshot, time::timeout};

use super::{repeats::Same, store, wait::Waiters};
use crate::{db, ids::TaskId};

/// How long a process has to reply. A live one needs milliseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// How many tasks a question may name: a notification has at most 8000 bytes.
const TASKS_MAX: usize = 128;

/// The questions of this process that wait for a reply. Cheap to clone.
#[derive(Clone, Default)]
pub struct Inquiries(Arc<Mutex<HashMap<u64, oneshot::Sender<Vec<TaskId>>>>>);

/// Asks one process which of these tasks have lost their caller.
#[derive(Serialize, Deserialize)]
struct Question {
    inquiry: u64,
    process: i32,
    tasks: Vec<TaskId>,
}

/// The tasks of a question whose callers still wait, or have received the response.
#[derive(Serialize, Deserialize)]
struct Reply {
    inquiry: u64,
    awaited: Vec<TaskId>,
}

impl Inquiries {
    /// Those of these tasks whose callers have left the live processes in which they waited.
    pub async fn gone(
        &self,
        pool: &db::Pool,
        same: &[Same],
        here: i32,
    ) -> sqlx::Result<Vec<TaskId>> {
        let mut elsewhere: HashMap<i32, Vec<TaskId>> = HashMap::new();
        for same in same.iter().filter(|same| same.is_there) {
            if let Some(process) = same.waiter.filter(|process| *process != here) {
                elsewhere.entry(process).or_default().push(same.task_id);
            }
        }
        let asked = elsewhere.into_iter().map(|(process, mut tasks)| {
            tasks.truncate(TASKS_MAX);
            self.ask(pool, process, tasks)
        });
        Ok(try_join_all(asked).await?.concat())
    }

    async fn ask(
        &self,
        pool: &db::Pool,
        process: i32,
        mut tasks: Vec<TaskId>,
    ) -> sqlx::Result<Vec<TaskId>> {
        let (sender, reply) = oneshot::channel();
        let open = Open::begin(self, sender);
        let question = Question {
            inquiry: open.inquiry,
            process,
            tasks: tasks.clone(),
        };
        notify(pool, store::ASKED_CHANNEL, &question).await?;
        if let Ok(Ok(awaited)) = timeout(REPLY_TIMEOUT, reply).await {
            tasks.retain(|task| !awaited.contains(task));
        }
        Ok(tasks)
    }

    /// Hands a reply to whoever asked, if that was this process.
    pub fn replied(&self, payload: &str) -> sqlx::Result<()> {
        let reply: Reply = parse(payload)?;
        if let Some(asker) = self.lock().remove(&reply.inquiry) {
            // The asker may have gone away meanwhile.
            drop(asker.send(reply.awaited));
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Vec<TaskId>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replies to a question, if it is for this process.
pub async fn reply(pool: &db::Pool, waiters: &Waiters, payload: &str) -> sqlx::Result<()> {
    let Question {
        inquiry,
        process,
        mut tasks,
    } = parse(payload)?;
    if process != waiters.process() {
        return Ok(());
    }
    tasks.retain(|task| !waiters.has_left(*task));
    let reply = Reply {
        inquiry,
        awaited: tasks,
    };
    notify(pool, store::REPLIED_CHANNEL, &reply).await
}

fn parse<T: DeserializeOwned>(payload: &str) -> sqlx::Result<T> {
    serde_json::from_str(payload).map_err(|error| sqlx::Error::Decode(error.into()))
}

async fn notify(pool: &db::Pool, channel: &str, message: &impl Serialize) -> sqlx::Result<()> {
    let message =
        serde_json::to_string(message).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let notified = async { db::notify(&mut *db::acquire(pool).await?, channel, &message).await };
    pool.in_time(notified).await
}

/// A question that waits for its reply. Dropping it forgets the question.
struct Open<'a> {
    inquiries: &'a Inquiries,
    inquiry: u64,
}

impl<'a> Open<'a> {
    fn begin(inquiries: &'a Inquiries, reply: oneshot::Sender<Vec<TaskId>>) -> Self {
        let inquiry = rand::random();
        inquiries.lock().insert(inquiry, reply);
        Self { inquiries, inquiry }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.inquiries.lock().remove(&self.inquiry);
    }
}
