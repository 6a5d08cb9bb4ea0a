//! Why a request for a reference failed.

use std::{io, time::Duration};

use hickory_resolver::net::NetError;

use super::guard::AddressRefused;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestFault {
    /// The name does not exist, or no name server answered.
    #[error("could not resolve the host name")]
    Name(#[from] NetError),
    /// The guard rejects the address.
    #[error("its address is refused")]
    Address(#[from] AddressRefused),
    /// It has no host or port that a request can name.
    #[error("its URL cannot be requested")]
    Url,
    /// Every address refused or was silent, or the TLS handshake failed.
    #[error("no connection was made")]
    Connect(#[source] io::Error),
    /// The response is not HTTP, or the server sent more bytes than it may.
    #[error("invalid HTTP response")]
    Http(#[from] hyper::Error),
    /// The server was silent for as long as it may be.
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
