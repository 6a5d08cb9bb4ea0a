//! Accepts log lines without blocking and writes them from a separate thread. Lines that cannot be buffered or written
//! are dropped and counted: a log that nobody reads delays no request.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use memchr::memchr_iter;

/// How long the process waits at its end for lines not written yet.
const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// Wait between two batches, so that lines gather: waking the thread for each costs a request more than its line.
const GATHER_WAIT: Duration = Duration::from_millis(10);
/// Wait before retrying a destination that another program set to non-blocking.
const RETRY_WAIT: Duration = Duration::from_millis(10);

/// Buffered lines. `&Lines` is a writer that neither blocks nor fails; each write is one line.
pub(super) struct Lines {
    bytes_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes that the writing thread is writing.
    in_flight: usize,
    /// Whether that thread is writing, or will fetch more by itself.
    is_busy: bool,
    /// Lines dropped and not reported yet.
    lost: u64,
    ended: bool,
}

/// Writes the remaining lines when dropped, for at most one second.
#[must_use = "the log ends when this is dropped"]
pub struct Flush(Arc<Lines>);

impl Lines {
    /// Starts the thread that writes to `destination`. It calls `report` with the number of dropped lines once lines
    /// can be written again.
    pub(super) fn start(
        bytes_max: usize,
        destination: impl Write + Send + 'static,
        report: fn(u64),
    ) -> io::Result<(Arc<Self>, Flush)> {
        let lines = Arc::new(Self {
            bytes_max,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let writing = Arc::clone(&lines);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.keep_writing(destination, report))?;
        let flush = Flush(Arc::clone(&lines));
        Ok((lines, flush))
    }

    fn keep_writing(&self, mut destination: impl Write, report: fn(u64)) {
        let mut batch = Vec::new();
        let mut is_within_line = false;
        while self.next(&mut batch) {
            if is_within_line {
                batch.insert(0, b'\n');
            }
            let written = write_most(&mut destination, &batch);
            let (through, left) = batch.split_at(written);
            is_within_line = through.last().map_or(is_within_line, |&last| last != b'\n');
            if let Some(lost) = self.account(left) {
                report(lost);
            }
            thread::sleep(GATHER_WAIT);
        }
    }

    /// Waits for lines, moves them into `batch`, and returns whether more can follow.
    fn next(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut state = self.lock();
        state.is_busy = false;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.waiting.is_empty() && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, batch);
        state.in_flight = batch.len();
        state.is_busy = !batch.is_empty();
        state.is_busy
    }

    /// Ends a batch of which `left` could not be written. If lines can be written and there is room for a report, takes
    /// the count of lost lines.
    fn account(&self, left: &[u8]) -> Option<u64> {
        let mut state = self.lock();
        state.in_flight = 0;
        state.lost += memchr_iter(b'\n', left).count() as u64;
        let can_tell = left.is_empty() && state.waiting.len() <= self.bytes_max / 2;
        if !can_tell || state.lost == 0 {
            return None;
        }
        Some(std::mem::take(&mut state.lost))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.in_flight + state.waiting.len() + line.len() <= self.bytes_max {
            let is_first = state.waiting.is_empty() && !state.is_busy;
            state.waiting.extend_from_slice(line);
            drop(state);
            if is_first {
                self.changed.notify_all();
            }
        } else {
            state.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        self.0.changed.notify_all();
        let is_left = |state: &mut State| !state.waiting.is_empty() || state.is_busy;
        // A thread stuck in a write ends with the process.
        let _ = self
            .0
            .changed
            .wait_timeout_while(state, FLUSH_WAIT, is_left);
    }
}

/// Writes until an error occurs. Returns the number of bytes written.
fn write_most(destination: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match destination.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_WAIT),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Accepts what the test permits: a number of bytes, or an error.
    struct Taps {
        allowed: mpsc::Receiver<Option<usize>>,
        taken: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Taps {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.allowed.recv() {
                Ok(Some(count)) => {
                    let count = count.min(bytes.len());
                    self.taken.send(bytes[..count].to_vec()).unwrap();
                    Ok(count)
                }
                Ok(None) => Err(ErrorKind::StorageFull.into()),
                Err(_) => Err(ErrorKind::BrokenPipe.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Trial {
        lines: Arc<Lines>,
        flush: Flush,
        allow: mpsc::Sender<Option<usize>>,
        taken: mpsc::Receiver<Vec<u8>>,
    }

    fn start(bytes_max: usize, report: fn(u64)) -> Trial {
        let (allow, allowed) = mpsc::channel();
        let (take, taken) = mpsc::channel();
        let taps = Taps {
            allowed,
            taken: take,
        };
        let (lines, flush) = Lines::start(bytes_max, taps, report).unwrap();
        Trial {
            lines,
            flush,
            allow,
            taken,
        }
    }

    fn wait_until(lines: &Lines, is_so: impl Fn(&State) -> bool) {
        let began = std::time::Instant::now();
        while !is_so(&lines.lock()) {
            assert!(began.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_destination_that_takes_nothing_blocks_nobody_and_what_is_lost_is_told() {
        static TOLD: Mutex<Vec<u64>> = Mutex::new(Vec::new());
        let Trial {
            lines,
            flush,
            allow,
            taken,
        } = start(20, |lost| TOLD.lock().unwrap().push(lost));
        let write = |line: &str| (&*lines).write_all(line.as_bytes()).unwrap();
        write("first\n");
        wait_until(&lines, |state| state.in_flight == 6);
        write("second\n");
        for _ in 0..1000 {
            write("too many\n");
        }
        for _ in 0..2 {
            allow.send(Some(100)).unwrap();
        }
        assert_eq!(taken.recv().unwrap(), b"first\n");
        assert_eq!(taken.recv().unwrap(), b"second\n");
        drop(flush);
        assert_eq!(*TOLD.lock().unwrap(), [1000]);
    }

    #[test]
    fn a_line_that_breaks_off_is_ended_before_the_next_and_counted() {
        static TOLD: Mutex<Vec<u64>> = Mutex::new(Vec::new());
        let Trial {
            lines,
            flush,
            allow,
            taken,
        } = start(100, |lost| TOLD.lock().unwrap().push(lost));
        allow.send(Some(3)).unwrap();
        allow.send(None).unwrap();
        (&*lines).write_all(b"first\n").unwrap();
        assert_eq!(taken.recv().unwrap(), b"fir");
        wait_until(&lines, |state| state.lost == 1 && !state.is_busy);
        (&*lines).write_all(b"second\n").unwrap();
        allow.send(Some(100)).unwrap();
        assert_eq!(taken.recv().unwrap(), b"\nsecond\n");
        drop(flush);
        assert_eq!(*TOLD.lock().unwrap(), [1]);
    }

    #[test]
    fn the_end_waits_for_what_is_under_way_but_not_for_ever() {
        let Trial {
            lines,
            flush,
            allow,
            taken: _taken,
        } = start(100, |_| {});
        (&*lines).write_all(b"first\n").unwrap();
        let begin = std::time::Instant::now();
        drop(flush);
        assert!(begin.elapsed() >= FLUSH_WAIT && begin.elapsed() < FLUSH_WAIT * 5);
        drop(allow);
    }
}
