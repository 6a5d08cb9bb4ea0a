//! Prices and the ledger: hold, capture, release, top up.

pub mod ledger;
mod payer;

pub use payer::{Payers, Refusal};
