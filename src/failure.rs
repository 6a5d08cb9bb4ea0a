//! The kinds of what goes wrong with an attempt to generate: what is decided by, and what is kept. And how an
//! error is told with its causes.

use std::error::Error;

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
    /// The upstream fell silent, and may have generated.
    OutcomeUnknown,
    /// The upstream answered well, without a usable image.
    NoImage,
    /// The worker was lost in the middle.
    Lost,
    /// We failed.
    Internal,
}

/// The error and its causes in one line. Many errors repeat their cause in their own text: what was said
/// is not said again.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
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
    fn causes_are_told_once() {
        let os = Layer("Connection refused (os error 111)", None);
        let repeating = Layer("tcp: Connection refused (os error 111)", Some(Box::new(os)));
        let outer = Layer("the database cannot be reached", Some(Box::new(repeating)));
        assert_eq!(
            with_causes(&outer),
            "the database cannot be reached: tcp: Connection refused (os error 111)"
        );
    }
}
