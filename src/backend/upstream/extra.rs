//! What the operator has sent to an upstream beside, or in place of, what a backend says.

use serde_json::{Map, Value};

/// Lays the operator's fields over those of the same place, however deep they are.
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
    fn extra_fields_go_as_deep_as_they_are() {
        let mut content = json!({"generationConfig": {"a": 1, "b": {"c": 2}}, "d": []});
        let extra = json!({"generationConfig": {"b": {"c": 3, "e": 4}}, "d": {"f": 5}, "g": 6});
        deep_merge(&mut content, extra.as_object().unwrap());
        let expected =
            json!({"generationConfig": {"a": 1, "b": {"c": 3, "e": 4}}, "d": {"f": 5}, "g": 6});
        assert_eq!(content, expected);
    }
}
