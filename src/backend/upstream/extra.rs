//! The operator's extra fields, which add to or replace the fields that a backend sends.

use serde_json::{Map, Value};

/// Merges `extra` into `content` at any depth; a field in `extra` wins.
pub(in crate::backend) fn deep_merge(content: &mut Value, extra: &Map<String, Value>) {
    for (name, value) in extra {
        match value {
            Value::Object(inner) if content[name].is_object() => {
                deep_merge(&mut content[name], inner);
            }
            _ => content[name] = value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn extra_fields_are_merged_at_any_depth() {
        let mut content = json!({"generationConfig": {"a": 1, "b": {"c": 2}}, "d": []});
        let extra = json!({"generationConfig": {"b": {"c": 3, "e": 4}}, "d": {"f": 5}, "g": 6});
        deep_merge(&mut content, extra.as_object().unwrap());
        let expected =
            json!({"generationConfig": {"a": 1, "b": {"c": 3, "e": 4}}, "d": {"f": 5}, "g": 6});
        assert_eq!(content, expected);
    }
}
