//! Makes foreign text storable: PostgreSQL stores no NUL, in text or in JSON.

use serde_json::{Map, Value};

use super::{Attempt, Ending, Failure, Outcome};

const REPLACEMENT: &str = "\u{fffd}";

fn text(text: &mut String) {
    if text.contains('\0') {
        *text = text.replace('\0', REPLACEMENT);
    }
}

/// Replaces NULs everywhere in a value, including field names.
fn value(of: &mut Value) {
    match of {
        Value::String(string) => text(string),
        Value::Array(values) => values.iter_mut().for_each(value),
        Value::Object(fields) => {
            if fields.keys().any(|name| name.contains('\0')) {
                let renamed = std::mem::take(fields).into_iter();
                *fields = renamed
                    .map(|(name, value)| (name.replace('\0', REPLACEMENT), value))
                    .collect::<Map<_, _>>();
            }
            fields.values_mut().for_each(value);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Attempt {
    /// Replaces NULs in the job handles.
    #[must_use]
    pub fn storable(mut self) -> Self {
        self.jobs.iter_mut().for_each(text);
        self
    }
}

impl Ending {
    /// Replaces NULs in everything that an upstream sent.
    #[must_use]
    pub fn storable(mut self) -> Self {
        self.usage.iter_mut().for_each(value);
        Self {
            outcome: self.outcome.storable(),
            attempt: self.attempt.map(Attempt::storable),
            usage: self.usage,
        }
    }
}

impl Outcome {
    /// Replaces NULs in the failure's message.
    #[must_use]
    fn storable(mut self) -> Self {
        if let Self::Failed(Failure { message, .. }) = &mut self {
            text(message);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_nul_is_left_anywhere() {
        let mut given = json!({"a\0b": ["c\0", {"d": "\0\0"}], "e": 1, "f": "g"});
        value(&mut given);
        let stored =
            json!({"a\u{fffd}b": ["c\u{fffd}", {"d": "\u{fffd}\u{fffd}"}], "e": 1, "f": "g"});
        assert_eq!(given, stored);
    }
}
