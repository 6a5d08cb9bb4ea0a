//! The schedule of faults: a new one every few seconds, one at a time, each over before the next.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use rustix::process::Signal;

use super::{
    fault_proxy::Fault,
    object_store::Condition,
    replica::Replica,
    stage::{REPLICAS, Stage},
};

/// The time between two faults, and the duration of one, in milliseconds.
const PAUSE_MS: Range<u64> = 3_000..6_000;
const LASTS_MS: Range<u64> = 2_000..9_000;
/// The last fault ends this long before the clients do.
const CALM_AT_THE_END: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Kill,
    Stop,
    Restart,
    DatabaseFrozen,
    DatabaseSilent,
    DatabaseSlow,
    DatabaseCut,
    DatabaseReset,
    DatabaseGoneForAll,
    StoreGone,
    StoreSilent,
    StoreFails,
    StoreFull,
    StoreSlow,
}

const KINDS: [Kind; 14] = [
    Kind::Kill,
    Kind::Stop,
    Kind::Restart,
    Kind::DatabaseFrozen,
    Kind::DatabaseSilent,
    Kind::DatabaseSlow,
    Kind::DatabaseCut,
    Kind::DatabaseReset,
    Kind::DatabaseGoneForAll,
    Kind::StoreGone,
    Kind::StoreSilent,
    Kind::StoreFails,
    Kind::StoreFull,
    Kind::StoreSlow,
];

/// A past fault and its effects.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) name: String,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// Replicas that ended by themselves, unsuccessfully, or too late.
    pub(super) bad_ends: Vec<String>,
}

/// Runs until time is up. Every kind occurs before any is repeated, so that short trials see most of them.
pub(super) async fn run(
    stage: &Stage,
    mut rng: StdRng,
    until: Instant,
) -> anyhow::Result<Vec<Past>> {
    let mut past = Vec::new();
    let mut left: Vec<Kind> = Vec::new();
    loop {
        pause(&mut rng, PAUSE_MS).await;
        if Instant::now() + CALM_AT_THE_END > until {
            tokio::time::sleep_until(until.into()).await;
            return Ok(past);
        }
        if left.is_empty() {
            left.extend(KINDS);
        }
        let kind = left.swap_remove(rng.random_range(0..left.len()));
        past.push(happen(stage, kind, &mut rng).await?);
    }
}

async fn happen(stage: &Stage, kind: Kind, rng: &mut StdRng) -> anyhow::Result<Past> {
    let number = rng.random_range(0..REPLICAS);
    let mut bad_ends = Vec::new();
    for replica in &stage.replicas {
        if replica.has_ended().await? {
            bad_ends.push("ended by itself".to_owned());
            replica.start().await?;
        }
    }
    let replica = &stage.replicas[number];
    let began = Instant::now();
    match kind {
        Kind::Kill => {
            replica.kill().await?;
            pause(rng, 500..3_000).await;
            replica.start().await?;
        }
        Kind::Stop => {
            replica.signal(Signal::STOP).await?;
            pause(rng, LASTS_MS).await;
            replica.signal(Signal::CONT).await?;
        }
        Kind::Restart => {
            bad_ends.extend(restart(replica).await?);
        }
        Kind::DatabaseFrozen => replica.database.freeze(),
        Kind::DatabaseGoneForAll => {
            set_for_all(stage, Fault::BlackHole, |replica| &replica.database);
            pause(rng, LASTS_MS).await;
            set_for_all(stage, Fault::None, |replica| &replica.database);
        }
        Kind::DatabaseSilent | Kind::DatabaseSlow | Kind::DatabaseCut | Kind::DatabaseReset => {
            replica.database.set(of_database(kind, rng));
            pause(rng, LASTS_MS).await;
            replica.database.set(Fault::None);
        }
        Kind::StoreFails | Kind::StoreFull => {
            stage.store.set(match kind {
                Kind::StoreFull => Condition::Full,
                _ => Condition::Failing,
            });
            pause(rng, LASTS_MS).await;
            stage.store.set(Condition::Working);
        }
        Kind::StoreGone | Kind::StoreSilent | Kind::StoreSlow => {
            let fault = match kind {
                Kind::StoreGone => Fault::Reset,
                Kind::StoreSilent => Fault::BlackHole,
                _ => Fault::Latency(Duration::from_millis(200)),
            };
            set_for_all(stage, fault, |replica| &replica.storage);
            pause(rng, LASTS_MS).await;
            set_for_all(stage, Fault::None, |replica| &replica.storage);
        }
    }
    Ok(Past {
        name: format!("{kind:?} at {number}"),
        began,
        ended: Instant::now(),
        bad_ends,
    })
}

fn of_database(kind: Kind, rng: &mut StdRng) -> Fault {
    match kind {
        Kind::DatabaseSilent => Fault::BlackHole,
        Kind::DatabaseSlow => {
            let delays = [20, 50, 100].map(Duration::from_millis);
            Fault::Latency(*delays.choose(rng).unwrap_or(&delays[0]))
        }
        // In the middle of an answer, at any byte.
        Kind::DatabaseCut => Fault::CutAfter(rng.random_range(1_000..20_000)),
        _ => Fault::Reset,
    }
}

fn set_for_all(
    stage: &Stage,
    fault: Fault,
    proxy: impl Fn(&Replica) -> &super::fault_proxy::FaultProxy,
) {
    for replica in &stage.replicas {
        proxy(replica).set(fault);
    }
}

/// As an upgrade does it; returns what was wrong with its end.
async fn restart(replica: &Replica) -> anyhow::Result<Option<String>> {
    let ended = replica.end().await?;
    replica.start().await?;
    Ok(match ended.status {
        None => Some(format!("did not end within {:?}", ended.took)),
        Some(status) if !status.success() => Some(format!("ended badly: {status}")),
        Some(_) => None,
    })
}

async fn pause(rng: &mut StdRng, milliseconds: Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(milliseconds))).await;
}
