//! The kinds of what goes wrong with an attempt to draw: what is decided by, and what is kept.

use serde::{Deserialize, Serialize};

/// By what it means for the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// By the upstream's safety system.
    Refused,
    /// The upstream does not accept the request.
    Invalid,
    /// The operator's key or quota at the upstream is no good.
    Credentials,
    RateLimited,
    /// The upstream certainly did not take the request on.
    Unreachable,
    /// The upstream says that it has failed.
    Failed,
    /// The upstream fell silent, and may have drawn.
    Silent,
    /// The upstream answered well, without a usable picture.
    NoImage,
    /// The worker was lost in the middle.
    Lost,
    /// We failed.
    Internal,
}
