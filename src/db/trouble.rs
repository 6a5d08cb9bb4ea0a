//! Classifies database errors by what the caller should do: whether and where to retry.

use std::io;

use sqlx::error::DatabaseError;

/// The class of a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection is lost, or none is available. The statement may have been executed.
    Unreachable,
    /// Others hold a needed lock. Nothing was done.
    Contended,
    /// The values are invalid or break a constraint. A retry would fail the same way.
    Refused,
    /// An internal error.
    Other,
}

/// `lock_not_available`, `deadlock_detected`, `serialization_failure`, `query_canceled`.
const CONTENDED: [&str; 4] = ["55P03", "40P01", "40001", "57014"];
/// Error classes: connection, resources, operator intervention, system; and sessions terminated because they were idle
/// in a transaction or in one for too long.
const UNREACHABLE: [&str; 6] = ["08", "53", "57P", "58", "25P03", "25P04"];
const REFUSED: [&str; 2] = ["22", "23"];

/// Classifies an error.
pub fn trouble(error: &sqlx::Error) -> Trouble {
    match error {
        sqlx::Error::Database(_) if is_code(error, &CONTENDED) => Trouble::Contended,
        sqlx::Error::Database(_) if is_code(error, &UNREACHABLE) => Trouble::Unreachable,
        sqlx::Error::Database(_) if is_code(error, &REFUSED) => Trouble::Refused,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Trouble::Unreachable,
        _ => Trouble::Other,
    }
}

/// Whether our own deadline expired, as opposed to a broken or unavailable connection.
pub fn is_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Whether the error's code starts with one of these.
pub(super) fn is_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| codes.iter().any(|begin| code.starts_with(begin)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_without_a_code_are_told_apart() {
        let silent = sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        assert_eq!(trouble(&silent), Trouble::Unreachable);
        assert_eq!(trouble(&sqlx::Error::PoolTimedOut), Trouble::Unreachable);
        assert_eq!(trouble(&sqlx::Error::RowNotFound), Trouble::Other);
    }
}
