//! Logs: to stderr, as text for people or as JSON for machines. Whatever becomes of stderr, nobody who
//! logs waits or fails.

mod lines;

use std::{
    any::Any,
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    panic::{self, Location},
};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};
use lines::Lines;

pub use lines::Flush;

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.filter {filter:?} is no filter, one is like info or easel=debug,warn")]
    Filter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("stderr cannot be written from a thread of its own")]
    Stderr(#[source] io::Error),
    #[error("logs are set up already")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what this process logs from now on to stderr, until what it returns is dropped.
pub fn init(log: &Log) -> Result<Flush, TelemetryError> {
    let filter = filter(&log.filter)?;
    let (lines, flush) = stderr()
        .and_then(|stderr| Lines::start(log.buffer_bytes_max, stderr, tell_lost))
        .map_err(TelemetryError::Stderr)?;
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .log_internal_errors(false);
    match log.format {
        LogFormat::Json => builder.json().finish().try_init(),
        LogFormat::Text => builder.with_ansi(wants_colours()).finish().try_init(),
    }
    .map_err(TelemetryError::AlreadySet)?;
    // By itself a panic goes to stderr, and waits for it.
    panic::set_hook(Box::new(|panic| {
        let text = panic_text(panic.payload(), panic.location());
        tracing::error!("{text}");
    }));
    Ok(flush)
}

/// Says something to whoever started the process, if stderr takes it within a second.
pub fn say(text: &str) {
    let started = stderr().and_then(|stderr| Lines::start(usize::MAX, stderr, |_| {}));
    if let Ok((lines, _flush)) = started {
        // This writer never fails.
        let _ = (&*lines).write_all(text.as_bytes());
    }
}

/// A handle of its own: a thread that is stuck in a write must not hold the lock of [`io::stderr`].
fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

/// Where it was. A message that was made for the occasion may hold what no log may hold, such as a prompt;
/// one that is in the program's text holds nothing.
fn panic_text(payload: &dyn Any, location: Option<&Location<'_>>) -> String {
    let place = location.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    match payload.downcast_ref::<&'static str>() {
        Some(message) => format!("panicked at {place}: {message}"),
        None => format!("panicked at {place}"),
    }
}

fn tell_lost(lines: u64) {
    tracing::warn!(
        log.lines_lost = lines,
        "lines of this log were lost: {lines}"
    );
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| TelemetryError::Filter {
            filter: text.to_owned(),
            source,
        })
}

fn wants_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_without_what_they_were_about() {
        let here = Location::caller();
        let made: String = format!("no char boundary in {:?}", "a prompt");
        let text = panic_text(&made, Some(here));
        assert_eq!(text, format!("panicked at {here}"));
        let text = panic_text(&"no such thing", None);
        assert_eq!(text, "panicked at an unknown place: no such thing");
    }

    #[test]
    fn a_bad_filter_is_refused_and_named() {
        assert!(filter("info").is_ok());
        assert!(filter("easel=debug,warn").is_ok());
        let error = filter("easel=loud").err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("easel=loud")));
    }
}
