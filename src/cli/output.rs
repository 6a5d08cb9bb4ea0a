//! Writes command output to stdout. A closed reader, such as `head`, ends a command quietly. Any other write error is a
//! failure: the output may be a key that is shown only once.

use std::io::{self, ErrorKind, Write};

use anyhow::Context as _;

/// Writes all of `text`.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("could not write the output to stdout"),
    }
}

/// Writes `text` as a line.
pub(super) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}
