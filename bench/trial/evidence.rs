//! What all parties have seen and stored, side by side.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    book::{Book, Call, Digest, Ending, Marker, Outcome, Purchase, Sample},
    ledger::{Ledger, Task},
    stage::Stage,
    upstream,
};

/// How often a failed call is made in all, as in `tasks.attempts_max`.
const ATTEMPTS_MAX: usize = 3;

/// The records of clients, upstream, database and store, joined.
pub(super) struct Evidence {
    pub(super) ledger: Ledger,
    pub(super) purchases: Vec<Purchase>,
    pub(super) samples: Vec<Sample>,
    calls: HashMap<Marker, Vec<Call>>,
    /// The digests of each task's images in the store; `None`: the image is missing.
    delivered: HashMap<Uuid, Vec<Option<Digest>>>,
}

impl Evidence {
    /// Reads the database and the store, and takes the records of the book.
    pub(super) async fn gather(stage: &Stage, book: &Book) -> anyhow::Result<Self> {
        let ledger = Ledger::read(stage).await?;
        let mut calls: HashMap<Marker, Vec<Call>> = HashMap::new();
        for call in book.calls().iter() {
            calls.entry(call.marker).or_default().push(call.clone());
        }
        let digest = |key: &String| stage.store.read(key).map(|bytes| upstream::digest(&bytes));
        let of_task = |task: &Task| (task.id, task.objects.iter().map(digest).collect());
        let delivered = ledger.tasks.iter().map(of_task).collect();
        Ok(Self {
            ledger,
            purchases: book.purchases().clone(),
            samples: book.samples().clone(),
            calls,
            delivered,
        })
    }

    /// The upstream calls of a purchase.
    pub(super) fn calls_of(&self, marker: Marker) -> &[Call] {
        self.calls.get(&marker).map_or(&[], Vec::as_slice)
    }

    /// The images of all answers that were completely read.
    pub(super) fn generated(&self) -> Vec<Digest> {
        let calls = self.calls.values().flatten().filter(|call| call.is_sent);
        calls.flat_map(|call| call.images.iter().copied()).collect()
    }

    /// The digests of a task's images in the store.
    pub(super) fn delivered_of(&self, task: Uuid) -> &[Option<Digest>] {
        self.delivered.get(&task).map_or(&[], Vec::as_slice)
    }

    /// The digests of all images in the store that belong to tasks.
    pub(super) fn delivered(&self) -> impl Iterator<Item = &Digest> {
        self.delivered.values().flatten().flatten()
    }

    /// The upstream returned nothing, although it was called: it hung, broke off, or failed every attempt.
    pub(super) fn is_excused(&self, purchase: &Purchase) -> bool {
        let calls = self.calls_of(purchase.marker);
        let ruined = |call: &Call| matches!(call.outcome, Outcome::Hangs | Outcome::Truncates);
        let failed = calls
            .iter()
            .filter(|call| call.outcome == Outcome::Fails)
            .count();
        !matches!(purchase.ending, Ending::Images { .. })
            && (calls.iter().any(ruined) || failed >= ATTEMPTS_MAX)
    }
}
