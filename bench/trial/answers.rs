//! Whether every client got its images, and in time.

use std::collections::{BTreeMap, HashSet};

use super::{
    book::{Digest, Ending, Purchase},
    evidence::Evidence,
    figures::{count, percent},
    report::{
        Figure,
        Floor::{self, AtLeast, AtMost},
    },
    stage::DEADLINE_S,
};

/// How many different failures are shown.
const EXAMPLES: usize = 15;
/// What a busy machine adds to a deadline.
const WAIT_SLACK_S: u64 = 5;

impl Evidence {
    /// The figures for answers and waits.
    pub(super) fn answers(&self) -> Vec<Figure> {
        let waiting = self.purchases.iter().filter(|one| one.kind.is_owed());
        let (ruined, owed): (Vec<_>, Vec<_>) = waiting.partition(|one| self.is_excused(one));
        print_failures(&owed);
        let got: Vec<_> = owed.iter().filter(|one| is_delivered(one)).collect();
        let soon = got.iter().filter(|one| one.tries.len() <= 3).count();
        let again = self.ledger.tasks.iter().filter(|task| task.attempts > 1);
        let tasks = count("tasks", self.ledger.tasks.len(), Floor::None);
        let floor = AtLeast(99.0);
        let success = percent(
            "success of what the upstream could give",
            got.len(),
            owed.len(),
            floor,
        );
        let note = format!(
            "{} purchases, the upstream ruined {} more",
            owed.len(),
            ruined.len()
        );
        vec![
            tasks.note(&format!("{} begun more than once", again.count())),
            success.note(&note),
            percent(
                "the same with an SDK's two retries",
                soon,
                owed.len(),
                Floor::None,
            ),
            self.lost_images(),
            self.longest_wait(),
            self.longest_task(),
        ]
    }

    fn lost_images(&self) -> Figure {
        let generated = self.generated();
        let delivered: HashSet<&Digest> = self.delivered().collect();
        let is_lost = |image: &&Digest| !delivered.contains(image);
        let lost = generated.iter().filter(is_lost).count();
        let what = "images generated and not delivered";
        percent(what, lost, generated.len(), AtMost(1.0))
            .note(&format!("{lost} of {}", generated.len()))
    }

    /// Clients that gave up after their own time-out waited less than is promised.
    fn longest_wait(&self) -> Figure {
        let tries = self.purchases.iter().flat_map(|purchase| &purchase.tries);
        let longest = tries.map(|one| one.took).max().unwrap_or_default();
        let what = "longest wait for an answer";
        Figure::new(what, longest.as_secs_f64(), "s", within_deadline())
    }

    fn longest_task(&self) -> Figure {
        let took = self.ledger.tasks.iter().map(|task| task.took_s);
        let what = "longest from acceptance to the end of a task";
        Figure::new(what, took.fold(0.0, f64::max), "s", within_deadline())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a minute or two")]
fn within_deadline() -> Floor {
    AtMost((DEADLINE_S + WAIT_SLACK_S) as f64)
}

/// Whether the client got its images.
pub(super) fn is_delivered(purchase: &Purchase) -> bool {
    matches!(purchase.ending, Ending::Images { .. })
}

/// The answers that clients got instead of the images they were owed.
fn print_failures(owed: &[&Purchase]) {
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    for purchase in owed.iter().filter(|one| !is_delivered(one)) {
        let last = purchase.tries.last();
        let status = last.and_then(|one| one.status);
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let message = last.map(|one| one.message.as_str()).unwrap_or_default();
        let (kind, tries) = (purchase.kind, purchase.tries.len());
        let line = format!("{kind:?}, {status} at the end of {tries}: {message}");
        *failures.entry(line).or_default() += 1;
    }
    let mut failures: Vec<_> = failures.into_iter().collect();
    failures.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    for (line, times) in failures.iter().take(EXAMPLES) {
        println!("  not delivered, {times} times: {line}");
    }
}
