//! The integration tests: one binary, one area per module.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers fail by panicking"
)]
#![expect(
    unreachable_pub,
    reason = "the harness is like a library within one binary"
)]

mod harness;

mod accounts;
mod backends;
mod billing;
mod cli;
mod connections;
mod costs;
mod database;
mod docs;
mod durability;
mod end_to_end;
mod errors;
mod fault_proxy;
mod fuzz;
mod generations;
mod ledger_model;
mod limits;
mod logs;
mod private_postgres;
mod references;
mod routing;
mod storage;
mod tasks;
mod tidy;
mod uploads;
