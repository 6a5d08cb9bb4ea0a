//! Whether the ledger, the store, the upstream and every client agree.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{
    book::{Digest, Ending, Kind, Marker, Purchase},
    evidence::Evidence,
    figures::{count, none},
    ledger::Task,
    report::{Figure, Floor::AtMost},
};

impl Evidence {
    /// I1 to I5, and every client's own record.
    pub(super) fn money(&self) -> Vec<Figure> {
        let tasks: HashMap<Uuid, &Task> = self.ledger.tasks.iter().map(|t| (t.id, t)).collect();
        let broken: Vec<_> = self
            .ledger
            .faults
            .iter()
            .filter(|(_, times)| *times > 0)
            .collect();
        let mut figures = vec![none("contradictions in the ledger", &broken)];
        figures.push(count(
            "tasks that never end",
            usize::try_from(self.ledger.open).unwrap_or(1),
            AtMost(0.0),
        ));
        figures.push(count(
            "held at rest, micro-CNY",
            usize::try_from(self.ledger.held).unwrap_or(1),
            AtMost(0.0),
        ));
        let named = || {
            self.purchases
                .iter()
                .flat_map(|purchase| purchase.tasks.iter().map(move |task| (purchase, task)))
        };
        let lost: Vec<_> = named().filter(|(_, id)| !tasks.contains_key(id)).collect();
        figures.push(none("accepted tasks that are gone", &lost));
        let foreign: Vec<_> = named()
            .filter_map(|(purchase, id)| Some((purchase, tasks.get(id)?)))
            .filter(|(purchase, task)| task.marker != Some(purchase.marker))
            .collect();
        figures.push(none("answers with another request's task", &foreign));
        let untrue: Vec<_> = self
            .purchases
            .iter()
            .filter(|purchase| !self.agrees_with_ledger(purchase, &tasks))
            .collect();
        figures.push(none("answers that the ledger contradicts", &untrue));
        figures.push(none(
            "charged more than once for one purchase",
            &self.bought_twice(),
        ));
        figures.push(none("charged and not in the store", &self.missing()));
        figures.push(none(
            "images that nobody generated for it",
            &self.foreign_images(),
        ));
        figures.push(none("images delivered twice", &self.delivered_twice()));
        figures
    }

    /// Images: completed, at that price, with as many images as charged. Failed: nothing was charged.
    fn agrees_with_ledger(&self, purchase: &Purchase, tasks: &HashMap<Uuid, &Task>) -> bool {
        let Ending::Images { task, images } = purchase.ending else {
            return purchase.ending != Ending::Failed
                || purchase.kind != Kind::Async
                || purchase
                    .tasks
                    .iter()
                    .all(|id| tasks.get(id).is_some_and(|t| t.captured == 0));
        };
        let Some(task) = tasks.get(&task) else {
            return false;
        };
        let delivered: Vec<Digest> = self
            .delivered_of(task.id)
            .iter()
            .flatten()
            .copied()
            .collect();
        let price = purchase.unit_price * i64::try_from(images).unwrap_or(i64::MAX);
        task.status == "completed"
            && task.unit_price == purchase.unit_price
            && task.captured == price
            && task.objects.len() == images
            && images <= purchase.n
            && purchase.n == task.n
            && (purchase.kind != Kind::Inline || purchase.inline == delivered)
    }

    fn bought_twice(&self) -> Vec<(Marker, usize)> {
        let mut bought: HashMap<Marker, usize> = HashMap::new();
        for task in self.ledger.tasks.iter().filter(|task| task.captured > 0) {
            if let Some(marker) = task.marker {
                *bought.entry(marker).or_default() += 1;
            }
        }
        bought.into_iter().filter(|(_, times)| *times > 1).collect()
    }

    fn missing(&self) -> Vec<&Task> {
        let is_missing = |task: &&Task| self.delivered_of(task.id).contains(&None);
        self.ledger.tasks.iter().filter(is_missing).collect()
    }

    fn foreign_images(&self) -> Vec<&Task> {
        let is_foreign = |task: &&Task| {
            let calls = task.marker.map(|marker| self.calls_of(marker));
            let generated: HashSet<&Digest> = calls
                .into_iter()
                .flatten()
                .flat_map(|call| &call.images)
                .collect();
            let mut delivered = self.delivered_of(task.id).iter().flatten();
            delivered.any(|image| !generated.contains(image))
        };
        self.ledger.tasks.iter().filter(is_foreign).collect()
    }

    fn delivered_twice(&self) -> Vec<Digest> {
        let mut seen = HashSet::new();
        self.delivered()
            .filter(|image| !seen.insert(**image))
            .copied()
            .collect()
    }
}
