//! The integration tests: one binary, one area per module.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what helps tests fails by panicking"
)]

mod references;
