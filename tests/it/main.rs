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

mod account_routes;
mod backends;
mod cancelled_begin;
mod chained;
mod clients;
mod commands;
mod connections;
mod data_directories;
mod database;
mod durability;
mod errors;
mod fault_proxy;
mod first_run;
mod fuzz;
mod generations;
mod ledger_checks;
mod ledger_model;
mod limits;
mod logs;
mod migrations;
mod modes;
mod money;
mod private_postgres;
mod production;
mod readme;
mod references;
mod reliability;
mod repeats;
mod routing;
mod storage;
mod tasks;
mod tidy;
mod uploads;
