//! The integration tests: one binary, one area per module.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what helps tests fails by panicking"
)]
#![expect(
    unreachable_pub,
    reason = "the harness is a crate's worth of helpers within one binary"
)]

mod harness;

mod clients;
mod commands;
mod durability;
mod first_run;
mod modes;
mod references;
mod storage;
mod tidy;
