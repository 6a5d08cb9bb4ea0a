//! Ending the tasks that nobody else will: those past their deadline, and those that were lost once too often.
//! In batches, until none is left, and without reading what they ask for: one that cannot be read ends too.

use std::{collections::HashSet, error::Error, time::Duration};

use super::{retry::failed, run::PAST_DEADLINE};
use crate::{
    app::App,
    billing::ledger::{self, Settlement},
    db::{self, Patience},
    ids::{AccountId, TaskId},
    tasks::{
        FailureKind, Outcome,
        store::{self, Doomed, Ending, Overdue},
    },
};

const BATCH_MAX: i64 = 256;
/// A worker has so long to end its own task at the deadline, with what was delivered until then.
const GRACE: Duration = Duration::from_secs(3);

/// Ends all tasks that are past their deadline, whoever may be working on them. Their number.
pub async fn end_expired(app: &App) -> sqlx::Result<usize> {
    let outcome = Outcome::Failed(failed(FailureKind::Deadline, PAST_DEADLINE));
    end_all(app, Overdue::Expired { grace: GRACE }, &outcome).await
}

/// Ends all tasks that were begun as often as may be and have lost their worker again. Their number.
pub async fn end_exhausted(app: &App) -> sqlx::Result<usize> {
    let attempts_max = i16::try_from(app.config.tasks.attempts_max).unwrap_or(i16::MAX);
    let message = "the task was begun several times and never ended";
    let outcome = Outcome::Failed(failed(FailureKind::Internal, message));
    end_all(app, Overdue::Exhausted { attempts_max }, &outcome).await
}

async fn end_all(app: &App, which: Overdue, outcome: &Outcome) -> sqlx::Result<usize> {
    let mut all = 0;
    // Those whose accounts others hold are left for the next time.
    let mut held: HashSet<AccountId> = HashSet::new();
    loop {
        let some = end_some(app, which, outcome, &mut held);
        let Some(ended) = app.pool.in_time(some).await? else {
            break;
        };
        all += ended.len();
        if let Err(error) = app.waiters.look_at(&app.pool, &ended).await {
            tracing::warn!(
                error = &error as &dyn Error,
                "who waits for expired tasks is told at the next look"
            );
        }
    }
    if all > 0 {
        tracing::info!(tasks = all, "ended tasks that nobody else would: {which:?}");
    }
    Ok(all)
}

/// One batch of them; `None`: there are no more.
async fn end_some(
    app: &App,
    which: Overdue,
    outcome: &Outcome,
    held: &mut HashSet<AccountId>,
) -> sqlx::Result<Option<Vec<TaskId>>> {
    let mut tx = db::begin(&app.pool, Patience::Little).await?;
    let except: Vec<AccountId> = held.iter().copied().collect();
    let mut doomed: Vec<Doomed> = store::overdue(&mut tx, which, &except, BATCH_MAX).await?;
    if doomed.is_empty() {
        tx.rollback().await?;
        return Ok(None);
    }
    let accounts: HashSet<AccountId> = doomed.iter().map(|doomed| doomed.account_id).collect();
    let accounts: Vec<AccountId> = accounts.into_iter().collect();
    let free: HashSet<AccountId> = ledger::lock_free(&mut tx, &accounts)
        .await?
        .into_iter()
        .collect();
    held.extend(accounts.iter().filter(|account| !free.contains(account)));
    doomed.retain(|doomed| free.contains(&doomed.account_id));
    let endings: Vec<Ending<'_>> = doomed
        .iter()
        .map(|doomed| Ending {
            id: doomed.id,
            fence: doomed.fence,
            outcome,
            attempt: None,
            usage: &[],
        })
        .collect();
    let ended = store::end(&mut tx, &endings).await?;
    let settlements: Vec<Settlement> = ended.iter().map(Settlement::from).collect();
    ledger::settle(&mut tx, &settlements, &app.config.billing.time_zone).await?;
    let ids: Vec<TaskId> = ended.iter().map(|ended| ended.id).collect();
    store::notify_ended(&mut tx, &ids).await?;
    tx.commit().await?;
    Ok(Some(ids))
}
