//! How many files a process may have open. A waiting request needs two, its client's connection and its
//! upstream's, and 1,024 is what most systems give a process that does not ask for more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for as many as the system allows.
pub(super) fn allow_most() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
