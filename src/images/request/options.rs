//! Request fields that only some backends support (`background`, `style`, `negative_prompt`, …). Fields that no
//! backend of the model reads are ignored and not stored.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::error::RequestError;
use crate::backend::catalog::Model;

/// Maximum size of one field's value. Prompts and references have their own limits.
pub const VALUE_BYTES_MAX: usize = 4096;
/// Maximum total size of the options kept of one request.
const OPTIONS_BYTES_MAX: usize = 64 << 10;

/// The fields that the gateway itself does not interpret, in the order they arrived.
#[derive(Debug, Default)]
pub struct Options(Vec<(String, Unparsed)>);

/// A value, not yet parsed.
#[derive(Debug)]
pub enum Unparsed {
    /// A JSON value.
    Json(Bytes),
    /// A text part of a form.
    Text(Bytes),
    /// A value over the limit, not kept.
    TooLong,
}

impl Unparsed {
    /// A JSON value, kept unless it is too long.
    pub fn json(value: Bytes) -> Self {
        if value.len() > VALUE_BYTES_MAX {
            Self::TooLong
        } else {
            Self::Json(value)
        }
    }

    /// Parses the value. `None` if it cannot be stored: such an option is dropped instead of failing the request.
    fn read(&self) -> Option<Value> {
        let value = match self {
            Self::Json(value) => serde_json::from_slice(value).ok()?,
            Self::Text(text) => plain_value(std::str::from_utf8(text).ok()?),
            Self::TooLong => return None,
        };
        (!has_nul(&value)).then_some(value)
    }

    fn length(&self) -> usize {
        match self {
            Self::Json(bytes) | Self::Text(bytes) => bytes.len(),
            Self::TooLong => 0,
        }
    }
}

impl Options {
    /// Adds a field.
    pub fn push(&mut self, name: &str, given: Unparsed) {
        self.0.push((name.to_owned(), given));
    }

    /// The options that at least one backend of the model reads; an error if one or all of them are too long.
    pub(super) fn read_by(&self, model: &Model) -> Result<Map<String, Value>, RequestError> {
        let mut options = Map::new();
        let mut length = 0;
        let read = self.0.iter().filter(|(name, _)| model.reads_option(name));
        for (name, given) in read {
            if matches!(given, Unparsed::TooLong) {
                let message = format!("{name} must have at most {VALUE_BYTES_MAX} bytes");
                return Err(RequestError::invalid(name, message));
            }
            length += given.length();
            if length > OPTIONS_BYTES_MAX {
                let message = format!(
                    "the fields beside prompt and references must have at most \
                     {OPTIONS_BYTES_MAX} bytes in all"
                );
                return Err(RequestError::invalid(name, message));
            }
            if let Some(value) = given.read() {
                options.insert(name.clone(), value);
            }
        }
        Ok(options)
    }
}

/// Forms have no types, so a text that parses as a number or a boolean becomes one.
fn plain_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// PostgreSQL's JSON cannot store the character NUL.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &'static str) -> Option<Value> {
        Unparsed::Text(Bytes::from_static(text.as_bytes())).read()
    }

    fn json(text: &'static str) -> Option<Value> {
        Unparsed::json(Bytes::from_static(text.as_bytes())).read()
    }

    #[test]
    fn forms_and_json_give_the_same_values() {
        assert_eq!(text("80"), Some(json!(80)));
        assert_eq!(text("true"), Some(json!(true)));
        assert_eq!(text("opaque"), Some(json!("opaque")));
        assert_eq!(text("[1]"), Some(json!("[1]")));
        assert_eq!(json("[1]"), Some(json!([1])));
        assert_eq!(json("80"), Some(json!(80)));
    }

    #[test]
    fn values_that_cannot_be_stored_are_dropped() {
        for value in [
            r#""a\u0000b""#,
            r#"{"a":["\u0000"]}"#,
            r#"{"\u0000":1}"#,
            r#""\ud800""#,
            "1e999",
        ] {
            assert_eq!(json(value), None, "{value}");
        }
        assert_eq!(text("a\0b"), None);
        assert_eq!(json(r#""a\\u0000b""#), Some(json!("a\\u0000b")));
    }
}
