//! Why a request for a reference failed.

use std::{io, time::Duration};

use hickory_resolver::net::NetError;

use super::guard::AddressRefused;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestFault {
    #[error("could not resolve the host name")]
    Name(#[from] NetError),
    #[error("its address is refused")]
    Address(#[from] AddressRefused),
    #[error("its URL cannot be requested")]
    Url,
    #[error("no connection was made")]
    Connect(#[source] io::Error),
    #[error("invalid HTTP response")]
    Http(#[from] hyper::Error),
    #[error("no data for {} ms", .0.as_millis())]
    NoAnswer(Duration),
}

impl RequestFault {
    /// Whether the failure is a timeout.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Connect(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}
