//! What all parties have seen, recorded while it happens and compared at the end.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Identifies a purchase in its prompt: all tries of one purchase have the same marker.
pub(super) type Marker = u32;

/// What a client wanted, and its outcome.
#[derive(Clone, Debug)]
pub(super) struct Purchase {
    pub(super) marker: Marker,
    pub(super) kind: Kind,
    /// How many images were ordered.
    pub(super) n: usize,
    /// The price of one image, in micro-CNY.
    pub(super) unit_price: i64,
    pub(super) began: Instant,
    /// All requests, in order.
    pub(super) tries: Vec<Try>,
    /// Every task that an answer named.
    pub(super) tasks: Vec<Uuid>,
    /// The images inside the answer.
    pub(super) inline: Vec<Digest>,
    /// The final answer.
    pub(super) ending: Ending,
}

/// The kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sync,
    Inline,
    Async,
    Edit,
    SlowBody,
    /// Hangs up before the answer and never retries.
    HangUp,
    /// Of an abusive account: its answers matter to the ledger only.
    Abuse,
}

impl Kind {
    /// Whether the client waits for its images and follows the answers meanwhile.
    pub(super) fn is_owed(self) -> bool {
        !matches!(self, Self::HangUp | Self::Abuse)
    }
}

/// One request of a purchase.
#[derive(Clone, Debug)]
pub(super) struct Try {
    pub(super) took: Duration,
    /// `None`: no complete answer arrived.
    pub(super) status: Option<u16>,
    /// The error message or the reason why there is no answer.
    pub(super) message: String,
}

/// The final answer that a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Images {
        task: Uuid,
        images: usize,
    },
    Failed,
    /// It never learned how the purchase ended.
    Nothing,
}

/// One call, as the upstream saw it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) marker: Marker,
    pub(super) outcome: Outcome,
    /// The digests of its images.
    pub(super) images: Vec<Digest>,
    /// Whether the complete answer was read.
    pub(super) is_sent: bool,
}

/// A digest of an image's bytes.
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

/// Side by side: what a replica reports, and whether it generates.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) replica: usize,
    pub(super) began: Instant,
    pub(super) is_ready: bool,
    /// `None` if it took long: the fault may have begun or ended meanwhile.
    pub(super) works: Option<bool>,
    /// Its answer when it was not ready or did not generate.
    pub(super) said: String,
}

/// The record of purchases, upstream calls and samples.
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

/// The prompt that identifies a purchase.
pub(super) fn prompt(marker: Marker, rest: &str) -> String {
    format!("soak {marker:08x} {rest}")
}

/// The purchase that a body of any form belongs to.
pub(super) fn marker_in(text: &[u8]) -> Option<Marker> {
    let start = memchr::memmem::find(text, b"soak ")? + 5;
    let hex = std::str::from_utf8(text.get(start..start + 8)?).ok()?;
    Marker::from_str_radix(hex, 16).ok()
}
