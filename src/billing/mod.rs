//! Prices, and the ledger that money moves in: hold, capture, release, top up.

pub mod ledger;
mod payer;

pub use payer::{Payers, Refusal};
