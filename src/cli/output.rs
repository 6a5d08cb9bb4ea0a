//! What commands answer on stdout. A reader that has gone, as `head` does, ends a command quietly; an
//! answer that can't be written is a failure: it may be a key that is shown only once.

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
        written => written.context("the answer could not be written to stdout"),
    }
}

/// Writes `text` as a line.
pub(super) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}
