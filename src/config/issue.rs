//! What can be wrong with the settings: all of it at once, each issue with its key.

use std::{fmt, io, path::PathBuf};

/// Why there are no settings to run with. Never shows a value that is a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Only the place is shown: the line itself may hold a secret.
    #[error("the configuration file {} is not TOML: line {line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("the configuration cannot be used:\n  {}", join(.0))]
    Faults(Vec<ConfigIssue>),
}

/// One thing that is wrong, as `tasks.lease_ms: must be at least 1000, is 5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// Dotted, as in `models.gpt-image-2.price_low`.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl ConfigIssue {
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
