//! Whether what a replica says of itself is true.

use std::time::Instant;

use super::{
    book::Sample,
    evidence::Evidence,
    report::{Figure, Floor::AtMost},
    stage::REPLICAS,
};

const LIE_S_MAX: f64 = 5.0;

/// A time during which a replica said that it was ready and generated nothing, or the other way round.
struct Lie {
    replica: usize,
    began_s: f64,
    lasted_s: f64,
    said_ready: bool,
    heard: String,
}

impl std::fmt::Display for Lie {
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
    /// The longest time that a replica said one thing and did the other.
    pub(super) fn readiness(&self, ended: Instant) -> Figure {
        let lies: Vec<Lie> = (0..REPLICAS)
            .flat_map(|replica| self.lies_of(replica, ended))
            .filter(|lie| lie.lasted_s > LIE_S_MAX)
            .collect();
        for lie in &lies {
            println!("  {lie}");
        }
        let longest = lies.iter().map(|lie| lie.lasted_s).fold(0.0, f64::max);
        let what = "longest lie of readiness, if over 5 s";
        Figure::new(what, longest, "s", AtMost(LIE_S_MAX)).note(&format!(
            "{} samples, {} such lies",
            self.samples.len(),
            lies.len()
        ))
    }

    fn lies_of(&self, replica: usize, ended: Instant) -> Vec<Lie> {
        let of_it = |sample: &&Sample| sample.replica == replica;
        let mut samples: Vec<&Sample> = self.samples.iter().filter(of_it).collect();
        samples.sort_by_key(|sample| sample.began);
        let start = samples.first().map_or(ended, |first| first.began);
        let mut lies: Vec<Lie> = Vec::new();
        let mut goes_on = false;
        for (index, sample) in samples.iter().enumerate() {
            let is_lie = sample.works == Some(!sample.is_ready);
            let until = samples.get(index + 1).map_or(ended, |next| next.began);
            match lies.last_mut() {
                Some(lie) if is_lie && goes_on => {
                    lie.lasted_s = (until - start).as_secs_f64() - lie.began_s;
                }
                _ if is_lie => lies.push(Lie {
                    replica,
                    began_s: (sample.began - start).as_secs_f64(),
                    lasted_s: (until - sample.began).as_secs_f64(),
                    said_ready: sample.is_ready,
                    heard: sample.said.clone(),
                }),
                _ => {}
            }
            goes_on = is_lie;
        }
        lies
    }
}
