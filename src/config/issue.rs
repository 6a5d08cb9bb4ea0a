//! Configuration errors: reports all issues at once, each with its key.

use std::{fmt, io, path::PathBuf};

/// Why the settings cannot be used. Never shows a secret value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file, or it is not readable.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Shows only the position: the line itself may contain a secret.
    #[error("the configuration file {} is not TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Settings that are wrong, all of them.
    #[error("the configuration cannot be used:\n  {}", join(.0))]
    Faults(Vec<ConfigIssue>),
}

/// One issue, shown as `tasks.lease_ms: must be at least 1000, is 5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// Dotted, as in `models.gpt-image-2.price_low`.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl ConfigIssue {
    /// An issue with this key.
    pub fn new(key: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            key: key.to_string(),
            message: message.into(),
        }
    }
}

impl fmt::Display for ConfigIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

fn join(issues: &[ConfigIssue]) -> String {
    let lines: Vec<String> = issues.iter().map(ConfigIssue::to_string).collect();
    lines.join("\n  ")
}
