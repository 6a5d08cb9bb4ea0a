//! Whether a replica's reports of readiness are true.

use std::time::Instant;

use super::{
    book::Sample,
    evidence::Evidence,
    report::{Figure, Floor::AtMost},
    stage::REPLICAS,
};

const MISMATCH_S_MAX: f64 = 5.0;

/// A time during which a replica reported ready and generated nothing, or the other way round.
struct Mismatch {
    replica: usize,
    began_s: f64,
    lasted_s: f64,
    said_ready: bool,
    heard: String,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = if self.said_ready {
            "ready"
        } else {
            "not ready"
        };
        let (replica, began, lasted) = (self.replica, self.began_s, self.lasted_s);
        write!(
            f,
            "{began:>6.1} s: replica {replica} said it was {words} for {lasted:.1} s: {}",
            self.heard
        )
    }
}

impl Evidence {
    /// The longest time that a replica reported one thing and did the other.
    pub(super) fn readiness(&self, ended: Instant) -> Figure {
        let mismatches: Vec<Mismatch> = (0..REPLICAS)
            .flat_map(|replica| self.mismatches_of(replica, ended))
            .filter(|mismatch| mismatch.lasted_s > MISMATCH_S_MAX)
            .collect();
        for mismatch in &mismatches {
            println!("  {mismatch}");
        }
        let longest = mismatches
            .iter()
            .map(|mismatch| mismatch.lasted_s)
            .fold(0.0, f64::max);
        let what = "longest lie of readiness, if over 5 s";
        Figure::new(what, longest, "s", AtMost(MISMATCH_S_MAX)).note(&format!(
            "{} samples, {} such lies",
            self.samples.len(),
            mismatches.len()
        ))
    }

    fn mismatches_of(&self, replica: usize, ended: Instant) -> Vec<Mismatch> {
        let of_it = |sample: &&Sample| sample.replica == replica;
        let mut samples: Vec<&Sample> = self.samples.iter().filter(of_it).collect();
        samples.sort_by_key(|sample| sample.began);
        let start = samples.first().map_or(ended, |first| first.began);
        let mut mismatches: Vec<Mismatch> = Vec::new();
        let mut goes_on = false;
        for (index, sample) in samples.iter().enumerate() {
            let is_mismatch = sample.works == Some(!sample.is_ready);
            let until = samples.get(index + 1).map_or(ended, |next| next.began);
            match mismatches.last_mut() {
                Some(mismatch) if is_mismatch && goes_on => {
                    mismatch.lasted_s = (until - start).as_secs_f64() - mismatch.began_s;
                }
                _ if is_mismatch => mismatches.push(Mismatch {
                    replica,
                    began_s: (sample.began - start).as_secs_f64(),
                    lasted_s: (until - sample.began).as_secs_f64(),
                    said_ready: sample.is_ready,
                    heard: sample.said.clone(),
                }),
                _ => {}
            }
            goes_on = is_mismatch;
        }
        mismatches
    }
}
