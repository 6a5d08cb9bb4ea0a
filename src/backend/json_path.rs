//! Paths into JSON: JSON pointers whose steps may be `*`, for every item of a list.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// A path such as `/data/*/url`; empty for the whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

/// One level deeper into a list or object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Every item of a list.
    Each,
    /// The field of this name, or the item with this index.
    Named(String),
}

/// Paths that are tried in turn; written as one text, or as a list of texts.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonPaths(pub(super) Vec<JsonPath>);

impl JsonPath {
    /// The step that follows inside `depth` lists and objects; `None` if the path ends there.
    pub(super) fn step(&self, depth: usize) -> Option<&Step> {
        self.0.get(depth)
    }

    /// The values there; `null` counts as none.
    fn all<'a>(&self, json: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![json];
        for step in &self.0 {
            found = found
                .into_iter()
                .flat_map(|value| step.values_in(value))
                .collect();
        }
        found.retain(|value| !value.is_null());
        found
    }
}

impl Step {
    fn values_in<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Each, Value::Array(items)) => items.iter().collect(),
            (Self::Each, _) => Vec::new(),
            (Self::Named(index), Value::Array(items)) => {
                let index = index.parse::<usize>().ok();
                index.and_then(|i| items.get(i)).into_iter().collect()
            }
            (Self::Named(name), value) => value.get(name).into_iter().collect(),
        }
    }
}

/// Reads a path as it is written: empty, or with a slash before each step.
impl From<&str> for JsonPath {
    fn from(text: &str) -> Self {
        let steps = text.split('/').skip(1).map(|step| match step {
            "*" => Step::Each,
            name => Step::Named(name.replace("~1", "/").replace("~0", "~")),
        });
        Self(steps.collect())
    }
}

impl JsonPaths {
    /// The first value at the first path that has one.
    pub(super) fn find<'a>(&self, json: &'a Value) -> Option<&'a Value> {
        let mut found = self.0.iter().flat_map(|path| path.all(json));
        found.next()
    }

    /// The texts at the first path that has any: directly, or in a list there.
    pub(super) fn texts<'a>(&self, json: &'a Value) -> Vec<&'a str> {
        let texts = |path: &JsonPath| -> Vec<&'a str> {
            let values = path.all(json).into_iter();
            let flat = values.flat_map(|value| match value {
                Value::Array(items) => items.iter().collect(),
                one => vec![one],
            });
            flat.filter_map(Value::as_str)
                .filter(|text| !text.is_empty())
                .collect()
        };
        let mut found = self.0.iter().map(texts);
        found.find(|texts| !texts.is_empty()).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for JsonPaths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Several(Vec<String>),
        }
        let texts = match Written::deserialize(deserializer)? {
            Written::One(text) => vec![text],
            Written::Several(texts) => texts,
        };
        let texts = texts.iter().map(String::as_str);
        let is_wrong = |text: &&str| !text.is_empty() && !text.starts_with('/');
        if let Some(text) = texts.clone().find(is_wrong) {
            let fault = format!("{text:?} is not a path such as /data/*/url");
            return Err(de::Error::custom(fault));
        }
        Ok(Self(texts.map(JsonPath::from).collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(texts: &[&str]) -> JsonPaths {
        serde_json::from_value(json!(texts)).unwrap()
    }

    #[test]
    fn the_first_path_with_a_value_counts() {
        let answer = json!({"data": [{"url": "a"}, {"url": ["b", "c"]}, {"url": null}, {}],
            "result_url": "d", "a/b": {"~": 1}, "none": null});
        let urls = paths(&["/none", "/data/*/url", "/result_url"]);
        assert_eq!(urls.texts(&answer), ["a", "b", "c"]);
        assert_eq!(paths(&["/nothing", "/result_url"]).texts(&answer), ["d"]);
        assert_eq!(paths(&["/data/0/url"]).find(&answer), Some(&json!("a")));
        assert_eq!(paths(&["/a~1b/~0"]).find(&answer), Some(&json!(1)));
        assert_eq!(paths(&[""]).find(&answer), Some(&answer));
        for nothing in ["/data/4", "/data/x", "/none", "/result_url/0", "/none/*"] {
            assert_eq!(paths(&[nothing]).find(&answer), None, "{nothing}");
        }
    }

    #[test]
    fn steps_are_items_or_names() {
        let named = |name: &str| Step::Named(name.to_owned());
        let path = JsonPath::from("/result/images/*/b64_json");
        let steps = [
            named("result"),
            named("images"),
            Step::Each,
            named("b64_json"),
        ];
        assert_eq!(path.0, steps);
        assert_eq!(
            JsonPath::from("/a.b/0/~1*").0,
            ["a.b", "0", "/*"].map(named)
        );
        assert_eq!(JsonPath::from("").0, []);
    }

    #[test]
    fn paths_begin_with_a_slash() {
        let error = serde_json::from_str::<JsonPaths>("\"data\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"data\" is not a path such as /data/*/url"
        );
    }
}
