//! Logs to stderr, as text for people or as JSON for machines. Logging never blocks and never fails, whatever happens
//! to stderr.

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

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.filter` cannot be parsed.
    #[error("log.filter {filter:?} is not a filter, expected one like info or easel=debug,warn")]
    Filter {
        /// The setting.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The system starts no more threads.
    #[error("could not start the log writer thread")]
    Stderr(#[source] io::Error),
    /// This process has called [`init`] before.
    #[error("logging is already set up")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends the logs of this process to stderr until the returned value is dropped.
pub fn init(log: &Log) -> Result<Flush, TelemetryError> {
    let filter = filter(&log.filter)?;
    let (lines, flush) = stderr()
        .and_then(|stderr| Lines::start(log.buffer_bytes_max, stderr, report_lost))
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
    // By default, a panic writes to stderr and waits for it.
    panic::set_hook(Box::new(|panic| {
        let text = panic_text(panic.payload(), panic.location());
        tracing::error!("{text}");
    }));
    Ok(flush)
}

/// Writes a message for the person who started the process, if stderr accepts it within a second.
pub fn say(text: &str) {
    let started = stderr().and_then(|stderr| Lines::start(usize::MAX, stderr, |_| {}));
    if let Ok((lines, _flush)) = started {
        // This writer never fails.
        let _ = (&*lines).write_all(text.as_bytes());
    }
}

/// A separate handle: a thread stuck in a write must not hold the lock of [`io::stderr`].
fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

/// The location of a panic, and its message if it is static text. A formatted message may contain what no log may
/// contain, such as a prompt.
fn panic_text(payload: &dyn Any, location: Option<&Location<'_>>) -> String {
    let place = location.map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
    match payload.downcast_ref::<&'static str>() {
        Some(message) => format!("panicked at {place}: {message}"),
        None => format!("panicked at {place}"),
    }
}

fn report_lost(lines: u64) {
    tracing::warn!(log.lines_lost = lines, "log lines dropped: {lines}");
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
        assert_eq!(text, "panicked at an unknown location: no such thing");
    }

    #[test]
    fn a_bad_filter_is_refused_and_named() {
        assert!(filter("info").is_ok());
        assert!(filter("easel=debug,warn").is_ok());
        let error = filter("easel=loud").err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("easel=loud")));
    }
}
