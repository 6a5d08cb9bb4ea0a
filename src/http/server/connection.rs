//! The state of a connection, and when it was entered. They decide when a slow peer's connection is closed, and
//! which connections are closed first to admit others.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config;

/// A peer slower than this, in a body or in a response, drips.
const DRIP_BYTES_PER_S: u128 = 8 * 1024;
/// How long a rate is measured before a peer can count as dripping.
const DRIP_AFTER: Duration = Duration::from_secs(1);
/// How long an idle connection cannot be closed to admit another: a request may be in flight.
pub(super) const YOUNG: Duration = Duration::from_millis(100);
/// Maximum number of requests per connection logged at info level; later ones are logged at debug level.
const LINES_MAX: u32 = 1_000;

/// One accepted connection, shared by its task, its stream, its bodies and the table.
pub(in crate::http) struct Connection {
    /// The address of the other side: the client's or a proxy's.
    pub(in crate::http) peer: SocketAddr,
    /// Whether the peer is a trusted proxy, which forwards the requests of many clients.
    pub(in crate::http) is_proxy: bool,
    /// Whether it was admitted to the reserve, where only requests that need no waiting are answered.
    pub(in crate::http) is_reserve: bool,
    activity: Mutex<Activity>,
    lines: AtomicU32,
    shed: CancellationToken,
}

struct Activity {
    phase: Phase,
    since: Instant,
    /// Bytes read and written since then.
    bytes: u64,
    /// Whether we wait for the rest of a body.
    is_awaiting: bool,
    /// Since when the peer has stopped reading.
    stuck: Option<Instant>,
    /// Whether part of the body of an answered request was never read.
    has_leftover: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was received yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// Receiving the head of a request.
    Head,
    /// Receiving the body of a request.
    Receiving,
    /// The request is complete, and a handler works on it.
    Working,
    /// Sending the response.
    Sending,
    /// The last response is sent. Further bytes are discarded, so that the peer can read the response.
    Lingering,
}

/// The time-outs of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the head of a request.
    pub(super) head: Duration,
    /// Between two requests.
    pub(super) idle: Duration,
    /// Without any progress in writing a response.
    pub(super) write: Duration,
    /// Whether a dripping peer is tolerated.
    may_drip: bool,
}

/// Why the gateway closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// No complete head within `head`, or no request within `idle`.
    NoRequest,
    /// No part of the response was read within `write`.
    NothingRead,
    /// The peer drips, and `may_drip` is off.
    Dripping,
}

/// The order in which connections are closed to admit others, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Without a request, since this time.
    Idle(Instant),
    /// Dripping, at this many bytes per second.
    Dripping(u64),
}

impl Patience {
    /// For the last stage of a shutdown. A client that sends its requests one after another is about to send the
    /// next: the idle time lets it get a response with `Connection: close` instead of a broken connection.
    pub(super) const LAST: Self = Self {
        head: Duration::from_secs(1),
        idle: Duration::from_millis(200),
        write: Duration::from_secs(2),
        may_drip: false,
    };

    /// The configured time-outs.
    pub(super) fn of(limits: &config::Server) -> Self {
        Self {
            head: limits.header_timeout(),
            idle: limits.idle_timeout(),
            write: limits.write_timeout(),
            may_drip: true,
        }
    }

    /// For the time in which a shutdown waits for tasks.
    pub(super) fn while_draining(self) -> Self {
        let idle = self.idle.min(Duration::from_secs(1));
        Self { idle, ..self }
    }

    /// A lower bound: after a change of state, a connection cannot be overdue sooner than this.
    fn shortest(&self) -> Duration {
        let after_a_change = if self.may_drip { self.idle } else { DRIP_AFTER };
        after_a_change.min(self.head).min(self.write)
    }
}

impl Connection {
    /// A connection that was just accepted.
    pub(super) fn new(peer: SocketAddr, is_proxy: bool, is_reserve: bool) -> Self {
        Self {
            peer,
            is_proxy,
            is_reserve,
            activity: Mutex::new(Activity {
                phase: Phase::Fresh,
                since: Instant::now(),
                bytes: 0,
                is_awaiting: false,
                stuck: None,
                has_leftover: false,
            }),
            lines: AtomicU32::new(0),
            shed: CancellationToken::new(),
        }
    }

    /// Whether to log one more of its requests at info level. Counts the request.
    pub(in crate::http) fn may_log(&self) -> bool {
        self.is_proxy || self.lines.fetch_add(1, Ordering::Relaxed) < LINES_MAX
    }

    /// Records bytes read from the peer.
    pub(super) fn read(&self, bytes: usize) {
        let mut activity = self.lock();
        activity.bytes += bytes as u64;
        if matches!(activity.phase, Phase::Fresh | Phase::Idle) {
            activity.enter(Phase::Head);
        }
    }

    /// Records bytes written; `None` if the peer currently accepts no bytes.
    pub(super) fn wrote(&self, bytes: Option<usize>) {
        let mut activity = self.lock();
        match bytes {
            Some(bytes) => {
                activity.bytes += bytes as u64;
                activity.stuck = None;
            }
            None if activity.stuck.is_none() => activity.stuck = Some(Instant::now()),
            None => {}
        }
    }

    /// Records that a request's head has arrived.
    pub(super) fn asked(&self, has_body: bool) {
        let phase = if has_body {
            Phase::Receiving
        } else {
            Phase::Working
        };
        self.lock().enter(phase);
    }

    /// Records whether we wait for the next piece of the body.
    pub(super) fn awaits_body(&self, is_awaiting: bool) {
        self.lock().is_awaiting = is_awaiting;
    }

    /// Records that the body has ended, or that the rest of it will not be read.
    pub(super) fn body_over(&self, is_whole: bool) {
        let mut activity = self.lock();
        activity.has_leftover |= !is_whole;
        if activity.phase == Phase::Receiving {
            activity.enter(Phase::Working);
        }
    }

    /// Records the start of a response.
    pub(super) fn answering(&self) {
        self.lock().enter(Phase::Sending);
    }

    /// Records the end of a response.
    pub(super) fn answered(&self) {
        self.lock().enter(Phase::Idle);
    }

    /// Whether the peer may still be sending when the connection is to be closed. Called once, after all is sent.
    pub(super) fn lingers(&self) -> bool {
        let mut activity = self.lock();
        let lingers = activity.has_leftover || activity.phase == Phase::Head;
        if lingers {
            activity.enter(Phase::Lingering);
        }
        lingers
    }

    /// Whether the peer has stopped reading.
    pub(super) fn is_stuck(&self) -> bool {
        self.lock().stuck.is_some()
    }

    /// Asks the connection's task to close it, to admit another.
    pub(super) fn make_room(&self) {
        self.shed.cancel();
    }

    /// Resolves once [`Connection::make_room`] was called.
    pub(super) async fn shed(&self) {
        self.shed.cancelled().await;
    }

    /// Its rank among the connections to close for others; `None` if it is too recent or busy.
    pub(super) fn rank(&self, now: Instant) -> Option<Rank> {
        let activity = self.lock();
        match activity.phase {
            Phase::Fresh | Phase::Idle | Phase::Head | Phase::Lingering
                if activity.stuck.is_none() =>
            {
                let is_old = now >= activity.since + YOUNG;
                is_old.then_some(Rank::Idle(activity.since))
            }
            _ => activity.drips(now).map(Rank::Dripping),
        }
    }

    /// Resolves once the peer has exceeded a time-out.
    pub(super) async fn overdue(&self, patience: Patience) -> Late {
        loop {
            let now = Instant::now();
            // Wake up before any later state can be overdue.
            let mut next = now + patience.shortest();
            for (deadline, late) in self.lock().deadlines(&patience, now) {
                match deadline {
                    Some(deadline) if deadline <= now => return late,
                    Some(deadline) => next = next.min(deadline),
                    None => {}
                }
            }
            sleep_until(next).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        self.bytes = 0;
        self.is_awaiting = false;
    }

    /// The rate in bytes per second, if we wait for the peer and it drips.
    fn drips(&self, now: Instant) -> Option<u64> {
        let waits = self.phase == Phase::Receiving && self.is_awaiting || self.stuck.is_some();
        let elapsed = now.saturating_duration_since(self.since);
        if !waits || elapsed < DRIP_AFTER {
            return None;
        }
        let rate = u128::from(self.bytes) * 1000 / elapsed.as_millis();
        (rate < DRIP_BYTES_PER_S).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    }

    fn deadlines(&self, patience: &Patience, now: Instant) -> [(Option<Instant>, Late); 3] {
        let stuck = self.stuck.map(|since| since + patience.write);
        let waiting = match self.phase {
            Phase::Fresh | Phase::Head => Some(patience.head),
            // Its last response is not sent yet.
            Phase::Idle if self.stuck.is_some() => None,
            Phase::Idle => Some(patience.idle),
            Phase::Receiving | Phase::Working | Phase::Sending | Phase::Lingering => None,
        };
        let drips = !patience.may_drip && self.drips(now).is_some();
        [
            (stuck, Late::NothingRead),
            (
                waiting.map(|patience| self.since + patience),
                Late::NoRequest,
            ),
            (drips.then_some(now), Late::Dripping),
        ]
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRequest => "the peer sent no request in time",
            Self::NothingRead => "the peer did not read its response in time",
            Self::Dripping => "the peer was too slow during shutdown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::new("192.0.2.1:7".parse().unwrap(), false, false)
    }

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn idle_connections_rank_before_dripping_ones_and_busy_ones_have_no_rank() {
        let (idle, dripping, working) = (connection(), connection(), connection());
        dripping.asked(true);
        dripping.awaits_body(true);
        dripping.read(100);
        working.asked(false);
        assert_eq!(idle.rank(Instant::now()), None, "too recent");
        assert!(idle.rank(later(2)) < dripping.rank(later(2)));
        assert!(matches!(
            dripping.rank(later(2)),
            Some(Rank::Dripping(0..=100))
        ));
        assert_eq!(working.rank(later(2)), None);
    }

    #[test]
    fn a_fast_body_and_one_that_we_do_not_read_do_not_drip() {
        let (fast, unread) = (connection(), connection());
        fast.asked(true);
        fast.awaits_body(true);
        fast.read(100_000);
        unread.asked(true);
        assert_eq!(fast.rank(later(2)), None);
        assert_eq!(unread.rank(later(2)), None);
        assert!(fast.rank(later(60)).is_some());
    }

    #[test]
    fn a_response_that_the_peer_does_not_read_drips() {
        let connection = connection();
        connection.asked(false);
        connection.answering();
        connection.wrote(Some(10));
        assert_eq!(connection.rank(later(2)), None);
        connection.wrote(None);
        assert!(connection.rank(later(2)).is_some());
        connection.wrote(Some(10));
        assert_eq!(connection.rank(later(2)), None);
    }

    #[tokio::test]
    async fn each_phase_has_its_own_time_out() {
        let patience = Patience {
            head: Duration::from_millis(100),
            idle: Duration::from_millis(200),
            write: Duration::from_millis(150),
            may_drip: true,
        };
        let after = async |connection: &Connection| {
            let began = Instant::now();
            let late = connection.overdue(patience).await;
            (late, began.elapsed().as_millis() / 50 * 50)
        };
        let connection = connection();
        assert_eq!(after(&connection).await, (Late::NoRequest, 100));
        connection.asked(false);
        connection.answering();
        connection.answered();
        assert_eq!(after(&connection).await, (Late::NoRequest, 200));
        connection.read(1);
        assert_eq!(after(&connection).await, (Late::NoRequest, 100));
        connection.asked(false);
        connection.wrote(None);
        assert_eq!(after(&connection).await, (Late::NothingRead, 150));
    }
}
