//! Notifications of tasks between processes. They are hints: whoever needs to know polls, too.

/// The NOTIFY channel for queued tasks.
pub const QUEUED_CHANNEL: &str = "easel_queued";
/// The NOTIFY channel for ended tasks.
pub const ENDED_CHANNEL: &str = "easel_ended";
/// The NOTIFY channel for questions about callers.
pub const ASKED_CHANNEL: &str = "easel_asked";
/// The NOTIFY channel for the replies to these questions.
pub const REPLIED_CHANNEL: &str = "easel_replied";
