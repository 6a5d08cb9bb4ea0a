//! The integration tests: one binary, one area per module.
#![expect(clippy::unwrap_used, reason = "what helps tests fails by panicking")]

mod harness;
mod storage;
