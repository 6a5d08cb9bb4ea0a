//! The limit on open files. A waiting request needs two, its client's connection and its upstream's, and most systems
//! default to 1,024 per process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to the system's maximum.
pub(super) fn allow_most() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "could not raise the limit on open files");
    }
}
