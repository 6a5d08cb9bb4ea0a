//! The whole gateway: with real clients, in a chain of two, and with S3 and a replica as in production.

mod chained;
pub mod clients;
mod production;
