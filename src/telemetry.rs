//! Logs: to stderr, as text for people or as JSON for machines.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.filter {filter:?} is no filter, one is like info or easel=debug,warn")]
    Filter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("logs are set up already")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what this process logs from now on to stderr.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    let filter = filter(&log.filter)?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Json => builder.json().finish().try_init(),
        LogFormat::Text => builder.with_ansi(wants_colours()).finish().try_init(),
    }
    .map_err(TelemetryError::AlreadySet)
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
    fn a_bad_filter_is_refused_and_named() {
        assert!(filter("info").is_ok());
        assert!(filter("easel=debug,warn").is_ok());
        let error = filter("easel=loud").err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("easel=loud")));
    }
}
