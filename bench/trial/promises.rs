//! The promises, compared with the results: one row each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    answers::is_delivered,
    book::Book,
    evidence::Evidence,
    faults::Past,
    figures::none,
    report::{self, Figure},
    stage::Stage,
};

/// Everything that is judged.
pub(super) struct Trial {
    pub(super) book: Arc<Book>,
    pub(super) faults: Vec<Past>,
    /// When clients and faults ended.
    pub(super) ended: Instant,
}

/// Prints the table; returns whether every promise was kept.
pub(super) async fn report(stage: &Stage, trial: &Trial) -> anyhow::Result<bool> {
    let evidence = Evidence::gather(stage, &trial.book).await?;
    print_past(&trial.faults, &evidence);
    let mut figures = evidence.money();
    figures.extend(evidence.answers());
    figures.push(evidence.readiness(trial.ended));
    let bad_ends: Vec<_> = trial
        .faults
        .iter()
        .flat_map(|past| &past.bad_ends)
        .collect();
    figures.push(none("replicas that ended badly, or late", &bad_ends));
    report::print_head();
    for figure in &figures {
        figure.print();
    }
    Ok(figures.iter().all(Figure::holds))
}

/// Prints the faults in their order, with what failed meanwhile.
fn print_past(faults: &[Past], evidence: &Evidence) {
    let Some(start) = evidence
        .purchases
        .iter()
        .map(|purchase| purchase.began)
        .min()
    else {
        return;
    };
    for past in faults {
        let at = |moment: Instant| moment.saturating_duration_since(start).as_secs_f64();
        let failed = evidence.purchases.iter().filter(|purchase| {
            let took: Duration = purchase.tries.iter().map(|one| one.took).sum();
            let is_within = purchase.began <= past.ended && purchase.began + took >= past.began;
            is_within
                && purchase.kind.is_owed()
                && !evidence.is_excused(purchase)
                && !is_delivered(purchase)
        });
        println!(
            "  {:>6.1} s to {:>6.1} s {:<24} {} not delivered",
            at(past.began),
            at(past.ended),
            past.name,
            failed.count()
        );
    }
}
