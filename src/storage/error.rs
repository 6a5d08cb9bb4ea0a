//! What can go wrong with stored bytes. For the operator's log: it names buckets, keys and paths.

use std::io;

use object_store::client::HttpError;

use super::{Key, Trouble};

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the storage settings cannot be used: {0}")]
    Settings(String),
    /// No space, or a quota used up.
    #[error("the storage is full")]
    Full(#[source] io::Error),
    #[error("could not {action} in local storage")]
    Local {
        /// Such as `write an object`.
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not {action} in the s3 store")]
    S3 {
        action: &'static str,
        #[source]
        source: object_store::Error,
    },
    /// `detail` holds the store's own code and message.
    #[error("{store} answered {status}: {detail}")]
    Refused {
        store: String,
        status: u16,
        detail: String,
    },
    #[error("{store} could not be reached")]
    Unreachable {
        store: String,
        #[source]
        source: HttpError,
    },
    #[error("{store} did not answer within {seconds} s")]
    Silent { store: String, seconds: u64 },
    /// It was there before, or should have been.
    #[error("there is no object {key}")]
    Missing { key: Key },
    #[error("the range {start}..{end} lies outside the object of {size} bytes")]
    Range { start: u64, end: u64, size: u64 },
}

impl StorageError {
    /// For where an absent object is a fault.
    pub fn missing(key: &Key) -> Self {
        Self::Missing { key: key.clone() }
    }

    /// What it says of the store as a whole; `None`: nothing, and another try would end the same.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Full(_) => Some(Trouble::Full),
            Self::Settings(_) | Self::Missing { .. } | Self::Range { .. } => None,
            _ => Some(Trouble::Unreachable),
        }
    }

    /// Turns the error of a file operation into ours; `action` as in `write an object`.
    pub(super) fn local(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(source),
            _ => Self::Local { action, source },
        }
    }

    pub(super) fn s3(action: &'static str) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::S3 { action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_class_of_its_own() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let quota = io::Error::from_raw_os_error(libc::EDQUOT);
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let class = |error| StorageError::local("write an object")(error);
        assert!(matches!(class(full), StorageError::Full(_)));
        assert!(matches!(class(quota), StorageError::Full(_)));
        assert!(matches!(class(denied), StorageError::Local { .. }));
    }
}
