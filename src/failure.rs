//! The failure classes of an attempt to generate, which decide what follows and are stored with it;
//! and how to format an error with its causes.

use std::error::Error;

use serde::{Deserialize, Serialize};

/// The classes of failure, by what they mean for the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Refused by the upstream's safety system.
    Refused,
    /// The upstream does not accept the request.
    Invalid,
    /// The operator's key or quota at the upstream is not valid.
    Credentials,
    /// The upstream asks to slow down.
    RateLimited,
    /// The upstream certainly did not accept the request.
    Unreachable,
    /// The upstream reports that it failed.
    Failed,
    /// The upstream stopped responding and may have generated.
    OutcomeUnknown,
    /// The upstream succeeded, but delivered no usable image.
    NoImage,
    /// The worker was lost during the attempt.
    Lost,
    /// We failed.
    Internal,
}

/// Formats the error and its causes on one line. Many errors repeat their cause in their own text:
/// such a cause is omitted.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text_of_cause = error.to_string();
        if !text.contains(&text_of_cause) {
            text = format!("{text}: {text_of_cause}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn causes_are_not_repeated() {
        let os = Layer("Connection refused (os error 111)", None);
        let repeating = Layer("tcp: Connection refused (os error 111)", Some(Box::new(os)));
        let outer = Layer("the database cannot be reached", Some(Box::new(repeating)));
        assert_eq!(
            with_causes(&outer),
            "the database cannot be reached: tcp: Connection refused (os error 111)"
        );
    }
}
