//! What an error of the database means for whoever asked: whether to ask again, and where.

use std::io;

use sqlx::error::DatabaseError;

/// What went wrong, by what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection is lost, or none is to be had. What was asked may have been done.
    Unreachable,
    /// Others hold what was needed. Nothing was done.
    Contended,
    /// The values are refused, as they will be again: they cannot be stored, or break a constraint.
    Refused,
    /// A fault of ours.
    Other,
}

/// `lock_not_available`, `deadlock_detected`, `serialization_failure`, `query_canceled`.
const CONTENDED: [&str; 4] = ["55P03", "40P01", "40001", "57014"];
/// Classes of errors: connection, resources, operator intervention, the system; and the ends of sessions that
/// were idle in a transaction or too long in one.
const UNREACHABLE: [&str; 6] = ["08", "53", "57P", "58", "25P03", "25P04"];
const REFUSED: [&str; 2] = ["22", "23"];

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

/// Whether a deadline of ours was over, rather than that the connection broke or none was to be had.
pub fn is_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Whether the code of an error begins with one of these.
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
