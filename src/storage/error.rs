//! Storage errors, for the operator's log: they name buckets, keys and paths.

use std::io;

use object_store::client::HttpError;

use super::{Key, Trouble};

/// The status with which MinIO and others say that their disks are full.
const INSUFFICIENT_STORAGE: u16 = 507;

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The configuration is invalid or incomplete.
    #[error("the storage settings cannot be used: {0}")]
    Settings(String),
    /// No space left, or a quota is exhausted.
    #[error("the storage is full")]
    Full(#[source] io::Error),
    /// A file operation failed.
    #[error("could not {action} in local storage")]
    Local {
        /// Such as `write an object`.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A request of the client library failed.
    #[error("could not {action} in the s3 store")]
    S3 {
        /// Such as `finish an object`.
        action: &'static str,
        /// The library's error.
        #[source]
        source: object_store::Error,
    },
    /// The store returned an error status. `detail` holds its own code and message.
    #[error("{store} answered {status}: {detail}")]
    Refused {
        /// The bucket and its endpoint.
        store: String,
        /// The HTTP status.
        status: u16,
        /// Such as `NoSuchBucket: The specified bucket does not exist`.
        detail: String,
    },
    /// No connection to the store.
    #[error("{store} could not be reached")]
    Unreachable {
        /// The bucket and its endpoint.
        store: String,
        /// The error of the connection.
        #[source]
        source: HttpError,
    },
    /// The store did not respond in time.
    #[error("{store} did not answer within {seconds} s")]
    NoAnswer {
        /// The bucket and its endpoint.
        store: String,
        /// The limit.
        seconds: u64,
    },
    /// The object was deleted, or should exist but does not.
    #[error("object {key} does not exist")]
    Missing {
        /// The key of the object.
        key: Key,
    },
    /// The requested range is not within the object.
    #[error("the range {start}..{end} is outside the object of {size} bytes")]
    Range {
        /// The first byte.
        start: u64,
        /// The byte after the last.
        end: u64,
        /// The length of the object.
        size: u64,
    },
}

impl StorageError {
    /// For callers to whom a missing object is a fault.
    pub fn missing(key: &Key) -> Self {
        Self::Missing { key: key.clone() }
    }

    /// What the error says about the store as a whole. `None`: nothing, and a retry would fail the same way.
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Full(_)
            | Self::Refused {
                status: INSUFFICIENT_STORAGE,
                ..
            } => Some(Trouble::Full),
            Self::Settings(_) | Self::Missing { .. } | Self::Range { .. } => None,
            _ => Some(Trouble::Unreachable),
        }
    }

    /// Wraps the error of a file operation; `action` as in `write an object`.
    pub(super) fn local(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(source),
            _ => Self::Local { action, source },
        }
    }

    /// Turns an error of the library into one that says what could not be done.
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

    #[test]
    fn a_store_can_be_full_as_well() {
        let refused = |status| StorageError::Refused {
            store: "s3://pics".to_owned(),
            status,
            detail: "XMinioStorageFull".to_owned(),
        };
        assert_eq!(refused(507).trouble(), Some(Trouble::Full));
        assert_eq!(refused(500).trouble(), Some(Trouble::Unreachable));
    }
}
