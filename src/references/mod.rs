//! Reference images that clients name by a foreign URL: which URLs and addresses may be asked for,
//! and the only client that follows them.

mod allowance;
mod connection;
mod fetch;
mod guard;
mod resolve;

pub use allowance::Allowance;
pub use connection::RequestFault;
pub use fetch::{BuildError, FetchError, FetchFault, Fetched, Fetcher, StandIn};
pub use guard::{AddressRefused, Guard, UrlError};
