//! What a connection is about, and since when: by this it is closed when its peer takes too long, or, where
//! connections are short, before others.

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

/// Below this a body, or an answer, only drips.
const DRIP_BYTES_PER_S: u128 = 8 * 1024;
/// Before that is judged.
const DRIP_AFTER: Duration = Duration::from_secs(1);
/// Before an idle connection makes room: a request may be on its way.
pub(super) const YOUNG: Duration = Duration::from_millis(100);
/// Of one connection, lines of its requests in the log; later ones are for those who debug.
const LINES_MAX: u32 = 1_000;

/// One accepted connection, as its task, its stream, its bodies and the table of all of them see it.
pub(in crate::http) struct Connection {
    pub(in crate::http) peer: SocketAddr,
    /// Of a proxy of the operator's, which speaks for many.
    pub(in crate::http) is_proxy: bool,
    /// It came when all others were taken: only what can be answered at once is.
    pub(in crate::http) is_reserve: bool,
    activity: Mutex<Activity>,
    lines: AtomicU32,
    shed: CancellationToken,
}

struct Activity {
    phase: Phase,
    since: Instant,
    /// Moved since then, in either direction.
    bytes: u64,
    /// The rest of a body is awaited.
    is_awaiting: bool,
    /// Since when the peer takes nothing of what is written.
    stuck: Option<Instant>,
    /// Of a request that was answered, part of the body was never read.
    has_leftover: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// The head of a request is coming.
    Head,
    /// The body of a request is coming.
    Receiving,
    /// The request is here, and it is our turn.
    Working,
    Sending,
    /// All is answered. What the peer still sends is thrown away, so that it gets to read the answer.
    Lingering,
}

/// How long a peer may take over what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
    /// Whether it may be slower than a drip.
    may_drip: bool,
}

/// Why a connection was closed by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    NoRequest,
    NothingRead,
    Dripping,
}

/// Who makes room first, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It asks nothing, by since when.
    Idle(Instant),
    /// It drips, by bytes a second.
    Dripping(u64),
}

impl Patience {
    /// Once a shutdown waits for nothing else. Whoever asks one thing after the other, on one connection, is
    /// about to ask the next: it gets an answer that says `Connection: close`, not a broken connection.
    pub(super) const LAST: Self = Self {
        head: Duration::from_secs(1),
        idle: Duration::from_millis(200),
        write: Duration::from_secs(2),
        may_drip: false,
    };

    pub(super) fn of(limits: &config::Server) -> Self {
        Self {
            head: limits.header_timeout(),
            idle: limits.idle_timeout(),
            write: limits.write_timeout(),
            may_drip: true,
        }
    }

    /// While a shutdown waits for tasks.
    pub(super) fn while_ending(self) -> Self {
        let idle = self.idle.min(Duration::from_secs(1));
        Self { idle, ..self }
    }

    /// No change of a connection's state can make it late any sooner than that.
    fn shortest(&self) -> Duration {
        let after_a_change = if self.may_drip { self.idle } else { DRIP_AFTER };
        after_a_change.min(self.head).min(self.write)
    }
}

impl Connection {
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

    /// Whether one more request of it belongs into the log.
    pub(in crate::http) fn may_log(&self) -> bool {
        self.is_proxy || self.lines.fetch_add(1, Ordering::Relaxed) < LINES_MAX
    }

    pub(super) fn read(&self, bytes: usize) {
        let mut activity = self.lock();
        activity.bytes += bytes as u64;
        if matches!(activity.phase, Phase::Fresh | Phase::Idle) {
            activity.enter(Phase::Head);
        }
    }

    /// `None`: the peer takes nothing at present.
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

    /// A request's head is here.
    pub(super) fn asked(&self, has_body: bool) {
        let phase = if has_body {
            Phase::Receiving
        } else {
            Phase::Working
        };
        self.lock().enter(phase);
    }

    /// Whether the next piece of the body is awaited from the peer.
    pub(super) fn awaits_body(&self, is_awaiting: bool) {
        self.lock().is_awaiting = is_awaiting;
    }

    /// The body has ended, or nobody wants the rest of it.
    pub(super) fn body_over(&self, is_whole: bool) {
        let mut activity = self.lock();
        activity.has_leftover |= !is_whole;
        if activity.phase == Phase::Receiving {
            activity.enter(Phase::Working);
        }
    }

    pub(super) fn answering(&self) {
        self.lock().enter(Phase::Sending);
    }

    pub(super) fn answered(&self) {
        self.lock().enter(Phase::Idle);
    }

    /// All is sent and the connection is to be closed: whether the peer may still be sending. Asked once.
    pub(super) fn lingers(&self) -> bool {
        let mut activity = self.lock();
        let lingers = activity.has_leftover || activity.phase == Phase::Head;
        if lingers {
            activity.enter(Phase::Lingering);
        }
        lingers
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.lock().stuck.is_some()
    }

    /// Closes it, to make room for others.
    pub(super) fn make_room(&self) {
        self.shed.cancel();
    }

    /// Resolves once it is to make room.
    pub(super) async fn shed(&self) {
        self.shed.cancelled().await;
    }

    /// Whether it is among those that make room, and how early.
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

    /// Resolves once the peer has taken too long.
    pub(super) async fn overdue(&self, patience: Patience) -> Late {
        loop {
            let now = Instant::now();
            // Looked at again before any later state can be overdue.
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

    /// The bytes a second of a peer that keeps us waiting and is hardly there.
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
            // Its last answer is not sent yet.
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
            Self::NoRequest => "sent no request in time",
            Self::NothingRead => "did not read its answer in time",
            Self::Dripping => "was too slow for a shutdown",
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
    fn the_idle_make_room_before_the_dripping_and_those_at_work_never() {
        let (idle, dripping, working) = (connection(), connection(), connection());
        dripping.asked(true);
        dripping.awaits_body(true);
        dripping.read(100);
        working.asked(false);
        assert_eq!(idle.rank(Instant::now()), None, "a request may be coming");
        assert!(idle.rank(later(2)) < dripping.rank(later(2)));
        assert!(matches!(
            dripping.rank(later(2)),
            Some(Rank::Dripping(0..=100))
        ));
        assert_eq!(working.rank(later(2)), None);
    }

    #[test]
    fn a_body_that_comes_fast_or_that_we_do_not_read_does_not_drip() {
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
    fn an_answer_that_nobody_reads_drips() {
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
    async fn each_phase_has_its_own_patience() {
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
