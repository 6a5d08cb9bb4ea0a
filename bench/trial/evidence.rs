//! What everybody has seen and kept, side by side.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    book::{Book, Call, Digest, Marker, Outcome, Purchase, Sample, Told},
    ledger::{ServerState, Task},
    stage::Stage,
    upstream,
};

/// How often a call that failed is made again, as `tasks.attempts_max` has it.
const ATTEMPTS_MAX: usize = 3;

pub(super) struct Evidence {
    pub(super) state: ServerState,
    pub(super) purchases: Vec<Purchase>,
    pub(super) samples: Vec<Sample>,
    calls: HashMap<Marker, Vec<Call>>,
    /// Of each task, the digests of its images in the store; `None`: it is not there.
    delivered: HashMap<Uuid, Vec<Option<Digest>>>,
}

impl Evidence {
    pub(super) async fn gather(stage: &Stage, book: &Book) -> anyhow::Result<Self> {
        let state = ServerState::read(stage).await?;
        let mut calls: HashMap<Marker, Vec<Call>> = HashMap::new();
        for call in book.calls().iter() {
            calls.entry(call.marker).or_default().push(call.clone());
        }
        let digest = |key: &String| stage.store.read(key).map(|bytes| upstream::digest(&bytes));
        let of_task = |task: &Task| (task.id, task.objects.iter().map(digest).collect());
        let delivered = state.tasks.iter().map(of_task).collect();
        Ok(Self {
            state,
            purchases: book.purchases().clone(),
            samples: book.samples().clone(),
            calls,
            delivered,
        })
    }

    pub(super) fn calls_of(&self, marker: Marker) -> &[Call] {
        self.calls.get(&marker).map_or(&[], Vec::as_slice)
    }

    /// Of all answers that were taken whole.
    pub(super) fn generated(&self) -> Vec<Digest> {
        let calls = self.calls.values().flatten().filter(|call| call.is_sent);
        calls.flat_map(|call| call.images.iter().copied()).collect()
    }

    pub(super) fn delivered_of(&self, task: Uuid) -> &[Option<Digest>] {
        self.delivered.get(&task).map_or(&[], Vec::as_slice)
    }

    pub(super) fn delivered(&self) -> impl Iterator<Item = &Digest> {
        self.delivered.values().flatten().flatten()
    }

    /// The upstream gave nothing, and had the occasion: it hung or broke off, or failed to the last.
    pub(super) fn is_excused(&self, purchase: &Purchase) -> bool {
        let calls = self.calls_of(purchase.marker);
        let ruined = |call: &Call| matches!(call.outcome, Outcome::Hangs | Outcome::Truncates);
        let failed = calls
            .iter()
            .filter(|call| call.outcome == Outcome::Fails)
            .count();
        !matches!(purchase.told, Told::Images { .. })
            && (calls.iter().any(ruined) || failed >= ATTEMPTS_MAX)
    }
}
