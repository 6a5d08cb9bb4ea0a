//! Reference images that clients name by a foreign URL: which URLs and addresses may be asked for,
//! and the only client that follows them.

mod allowance;
mod connection;
mod fetch;
mod guard;
mod resolve;

pub use allowance::FetchBudget;
pub use connection::RequestFault;
pub use fetch::{BuildError, ExemptServer, FetchError, FetchFault, Fetched, Fetcher};
pub use guard::{AddressRefused, Guard, UrlError};
