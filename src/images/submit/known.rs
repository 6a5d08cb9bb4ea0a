//! What a batch must know of earlier tasks, including those of the batch itself.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{Candidate, Repeat, SubmitError};
use crate::{
    billing::ledger::NewTask,
    ids::{KeyId, TaskId},
    tasks::{
        repeats::{self, Join, Same},
        wait::Waiters,
    },
};

/// The earlier tasks that matter for a batch.
#[derive(Default)]
pub(super) struct Known {
    /// The number of open tasks, of keys with a limit.
    pub(super) open: HashMap<KeyId, i64>,
    /// The tasks that retries have joined.
    pub(super) joins: Vec<Join>,
    named: HashMap<(KeyId, String), (TaskId, Vec<u8>)>,
    same: HashMap<(KeyId, Vec<u8>), Vec<Same>>,
    waiters: Waiters,
}

impl Known {
    /// Reads only what some candidate needs, which is mostly nothing.
    pub(super) async fn read(
        conn: &mut PgConnection,
        candidates: &[&mut Candidate],
        waiters: &Waiters,
    ) -> sqlx::Result<Self> {
        let mut known = Self {
            waiters: waiters.clone(),
            ..Self::default()
        };
        let (mut named_keys, mut names) = (Vec::new(), Vec::new());
        let (mut same_keys, mut fingerprints) = (Vec::new(), Vec::new());
        for Candidate {
            task,
            repeat,
            concurrent_requests,
            ..
        } in candidates.iter().map(|candidate| &**candidate)
        {
            match repeat {
                Repeat::No => {}
                Repeat::Key(name) => {
                    named_keys.push(task.api_key_id);
                    names.push(name.clone());
                }
                Repeat::Retry(_) => {
                    same_keys.push(task.api_key_id);
                    fingerprints.push(task.fingerprint.clone());
                }
            }
            if let Some(limit) = *concurrent_requests
                && !known.open.contains_key(&task.api_key_id)
            {
                let open = repeats::open_of(conn, task.api_key_id, limit).await?;
                known.open.insert(task.api_key_id, open);
            }
        }
        if !names.is_empty() {
            for found in repeats::named(conn, &named_keys, &names).await? {
                let name = (found.api_key_id, found.idempotency_key);
                known.named.insert(name, (found.task_id, found.fingerprint));
            }
        }
        if !fingerprints.is_empty() {
            for found in repeats::same(conn, &same_keys, &fingerprints).await? {
                let request = (found.api_key_id, found.fingerprint.clone());
                known.same.entry(request).or_default().push(found);
            }
        }
        Ok(known)
    }

    /// The earlier task that this one repeats, if any; an error if its idempotency key is taken.
    pub(super) fn earlier(&mut self, candidate: &Candidate) -> Option<Result<TaskId, SubmitError>> {
        let task = &candidate.task;
        match &candidate.repeat {
            Repeat::No => None,
            Repeat::Key(name) => {
                let (id, fingerprint) = self.named.get(&(task.api_key_id, name.clone()))?;
                let same = *fingerprint == task.fingerprint;
                Some(if same {
                    Ok(*id)
                } else {
                    Err(SubmitError::KeyReused)
                })
            }
            Repeat::Retry(_) => self.lost(task, &candidate.gone).map(Ok),
        }
    }

    /// The task that a retry's caller has most likely lost: nobody waits for it, and no other retry
    /// of this number has joined it. Two retries in one batch never join the same task.
    fn lost(&mut self, task: &NewTask, gone: &[TaskId]) -> Option<TaskId> {
        let number = task.joined;
        let waiter = self.waiters.waiter_of(task.id);
        let request = (task.api_key_id, task.fingerprint.clone());
        let of_the_same_kind = |same: &Same| same.waiter.is_some() == waiter.is_some();
        let found = (self.same.get_mut(&request)?.iter_mut())
            .filter(|same| same.joined < number)
            .filter(|same| gone.contains(&same.task_id) || !same.is_awaited(&self.waiters))
            .max_by_key(|same| (of_the_same_kind(same), same.is_open, same.task_id))?;
        found.joined = number;
        let join = Join {
            task_id: found.task_id,
            number,
            waiter,
        };
        self.joins.push(join);
        Some(join.task_id)
    }

    /// Adds a granted task, so that later candidates of the batch can repeat it.
    pub(super) fn remember(&mut self, task: &NewTask) {
        if let Some(name) = &task.idempotency_key {
            let name = (task.api_key_id, name.clone());
            self.named.insert(name, (task.id, task.fingerprint.clone()));
        }
        let request = (task.api_key_id, task.fingerprint.clone());
        self.same.entry(request).or_default().push(Same {
            api_key_id: task.api_key_id,
            fingerprint: task.fingerprint.clone(),
            task_id: task.id,
            is_open: true,
            joined: task.joined,
            waiter: self.waiters.waiter_of(task.id),
            is_there: true,
        });
    }
}
