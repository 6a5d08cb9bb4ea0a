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

mod account_routes;
mod errors;
mod generations;
mod modes;
mod references;
mod tasks;
mod uploads;
