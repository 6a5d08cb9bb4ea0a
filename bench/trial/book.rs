//! What everybody has seen, written down while it happens and compared at the end.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Names what a client wants, in its prompt: all tries of one purchase have the same.
pub(super) type Marker = u32;

/// What a client wanted, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Purchase {
    pub(super) marker: Marker,
    pub(super) kind: Kind,
    pub(super) n: usize,
    /// Of one image, in micro-CNY.
    pub(super) unit_price: i64,
    pub(super) began: Instant,
    pub(super) tries: Vec<Try>,
    /// Every task that an answer named.
    pub(super) tasks: Vec<Uuid>,
    /// The images that came inside the answer.
    pub(super) inline: Vec<Digest>,
    pub(super) told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sync,
    Inline,
    Async,
    Edit,
    SlowBody,
    /// Hangs up before the answer and never asks again.
    HangUp,
    /// Of an account that behaves badly: what it is told matters to the ledger only.
    Abuse,
}

impl Kind {
    /// Whether the client waits for its images and does what it is told meanwhile.
    pub(super) fn is_owed(self) -> bool {
        !matches!(self, Self::HangUp | Self::Abuse)
    }
}

/// One request of a purchase.
#[derive(Clone, Debug)]
pub(super) struct Try {
    pub(super) took: Duration,
    /// `None`: no whole answer came.
    pub(super) status: Option<u16>,
    pub(super) message: String,
}

/// The last word that a client heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Images {
        task: Uuid,
        images: usize,
    },
    Failed,
    /// It never heard how it ended.
    Nothing,
}

/// One call of the upstream, as the upstream has seen it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) marker: Marker,
    pub(super) outcome: Outcome,
    /// By their digests.
    pub(super) images: Vec<Digest>,
    /// Whether all of the answer was taken.
    pub(super) is_sent: bool,
}

pub(super) type Digest = [u8; 32];

/// What the upstream does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Generates,
    Fails,
    Hangs,
    Truncates,
    GeneratesFewer,
    Refuses,
    /// Answers without an image.
    Talks,
}

/// Beside each other: what a replica says of itself, and whether it generates.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) replica: usize,
    pub(super) began: Instant,
    pub(super) is_ready: bool,
    /// Neither, where it took long: the fault may have begun or ended meanwhile.
    pub(super) works: Option<bool>,
    /// What it answered where it was not ready, or did not generate.
    pub(super) said: String,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    purchases: Mutex<Vec<Purchase>>,
    calls: Mutex<Vec<Call>>,
    samples: Mutex<Vec<Sample>>,
    markers: AtomicU32,
}

impl Book {
    pub(super) fn next_marker(&self) -> Marker {
        self.markers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn purchases(&self) -> MutexGuard<'_, Vec<Purchase>> {
        lock(&self.purchases)
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        lock(&self.calls)
    }

    pub(super) fn samples(&self) -> MutexGuard<'_, Vec<Sample>> {
        lock(&self.samples)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a prompt names a purchase.
pub(super) fn prompt(marker: Marker, rest: &str) -> String {
    format!("soak {marker:08x} {rest}")
}

/// The purchase that a body, whatever its form, belongs to.
pub(super) fn marker_in(text: &[u8]) -> Option<Marker> {
    let start = memchr::memmem::find(text, b"soak ")? + 5;
    let hex = std::str::from_utf8(text.get(start..start + 8)?).ok()?;
    Marker::from_str_radix(hex, 16).ok()
}
