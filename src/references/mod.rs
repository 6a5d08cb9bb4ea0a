//! Reference images given as foreign URLs: which URLs and addresses may be requested, and the only client that fetches
//! them.

mod allowance;
mod connection;
mod error;
mod fetch;
mod guard;
mod resolve;

pub use allowance::FetchBudget;
pub use error::RequestFault;
pub use fetch::{BuildError, ExemptServer, FetchError, FetchFault, Fetched, Fetcher};
pub use guard::{AddressRefused, Guard, UrlError};
