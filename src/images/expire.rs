//! Ends tasks that no worker will end: those past their deadline, and those out of attempts after a lost lease.
//! Works in batches until none is left, without reading requests, so that an unreadable request ends too.

use std::{collections::HashSet, error::Error, time::Duration};

use super::{retry::failed, run::PAST_DEADLINE};
use crate::{
    app::App,
    billing::ledger::{self, Settling},
    db::{self, Patience},
    ids::{AccountId, TaskId},
    tasks::{
        Ending, FailureKind, Outcome,
        store::{self, Overdue},
    },
};

const BATCH_MAX: i64 = 256;
/// How long after the deadline a worker may still end its own task, with what was delivered until then.
const GRACE: Duration = Duration::from_secs(3);

/// Ends all tasks past their deadline, whether or not a worker has them. Returns their number.
pub async fn end_expired(app: &App) -> sqlx::Result<usize> {
    let outcome = Outcome::Failed(failed(FailureKind::Deadline, PAST_DEADLINE));
    let ending = Ending::of(outcome);
    end_all(app, Overdue::Expired { grace: GRACE }, &ending).await
}

/// Ends all tasks that lost their worker on their last attempt. Returns their number.
pub async fn end_exhausted(app: &App) -> sqlx::Result<usize> {
    let attempts_max = i16::try_from(app.config.tasks.attempts_max).unwrap_or(i16::MAX);
    let message = "the task was begun several times and never ended";
    let ending = Ending::of(Outcome::Failed(failed(FailureKind::Internal, message)));
    end_all(app, Overdue::Exhausted { attempts_max }, &ending).await
}

async fn end_all(app: &App, which: Overdue, ending: &Ending) -> sqlx::Result<usize> {
    let mut all = 0;
    // Accounts that other transactions have locked are skipped until the next call.
    let mut held: HashSet<AccountId> = HashSet::new();
    loop {
        let some = end_some(app, which, ending, &mut held);
        let Some(ended) = app.pool.in_time(some).await? else {
            break;
        };
        all += ended.len();
        if let Err(error) = app.waiters.look_at(&app.pool, &ended).await {
            tracing::warn!(
                error = &error as &dyn Error,
                "expired tasks could not be reported to their waiters; the next poll will report them"
            );
        }
    }
    if all > 0 {
        tracing::info!(tasks = all, "ended overdue tasks: {which:?}");
    }
    Ok(all)
}

/// Ends one batch. `None`: no more tasks are overdue.
async fn end_some(
    app: &App,
    which: Overdue,
    ending: &Ending,
    held: &mut HashSet<AccountId>,
) -> sqlx::Result<Option<Vec<TaskId>>> {
    let mut tx = db::begin(&app.pool, Patience::Little).await?;
    let except: Vec<AccountId> = held.iter().copied().collect();
    let mut overdue = store::overdue(&mut tx, which, &except, BATCH_MAX).await?;
    if overdue.is_empty() {
        tx.rollback().await?;
        return Ok(None);
    }
    let accounts: HashSet<AccountId> = overdue.iter().map(|task| task.account_id).collect();
    let accounts: Vec<AccountId> = accounts.into_iter().collect();
    let free: HashSet<AccountId> = ledger::lock_free(&mut tx, &accounts)
        .await?
        .into_iter()
        .collect();
    held.extend(accounts.iter().filter(|account| !free.contains(account)));
    overdue.retain(|task| free.contains(&task.account_id));
    let endings: Vec<_> = overdue
        .iter()
        .map(|task| ((task.id, task.fence), ending))
        .collect();
    let settling = Settling {
        time_zone: &app.config.billing.time_zone,
        process: 0,
        patience: Patience::Little,
    };
    let settlements = ledger::settle(&mut tx, &endings, settling).await?;
    let ids: Vec<TaskId> = settlements
        .iter()
        .map(|settlement| settlement.task_id)
        .collect();
    tx.commit().await?;
    Ok(Some(ids))
}
