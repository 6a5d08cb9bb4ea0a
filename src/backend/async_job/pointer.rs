//! Locations in an answer: JSON pointers whose steps may be `*`, for every item of a list.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// Locations that are tried in turn; written as one text, or as a list of texts.
#[derive(Clone, Debug, Default)]
pub(super) struct Pointers(Vec<Pointer>);

/// A location such as `/data/*/url`; empty for the whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pointer(Vec<String>);

impl Pointers {
    /// The first value at the first location that has one.
    pub(super) fn find<'a>(&self, answer: &'a Value) -> Option<&'a Value> {
        self.all(answer).into_iter().next()
    }

    /// All values at the first location that has any.
    pub(super) fn all<'a>(&self, answer: &'a Value) -> Vec<&'a Value> {
        let found = self.0.iter().map(|pointer| pointer.all(answer));
        found
            .into_iter()
            .find(|values| !values.is_empty())
            .unwrap_or_default()
    }

    /// The texts at the first location that has any: directly, or in a list there.
    pub(super) fn texts<'a>(&self, answer: &'a Value) -> Vec<&'a str> {
        let texts = |pointer: &Pointer| -> Vec<&'a str> {
            let values = pointer.all(answer).into_iter();
            let flat = values.flat_map(|value| match value {
                Value::Array(items) => items.iter().collect(),
                one => vec![one],
            });
            flat.filter_map(Value::as_str)
                .filter(|text| !text.is_empty())
                .collect()
        };
        let found = self.0.iter().map(texts);
        found
            .into_iter()
            .find(|texts| !texts.is_empty())
            .unwrap_or_default()
    }

    /// The locations in the image scanner's notation: `data[].b64_json`.
    pub(super) fn scanned(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|pointer| {
            let mut path = String::new();
            for step in &pointer.0 {
                match step.as_str() {
                    "*" => path.push_str("[]"),
                    name if path.is_empty() => path.push_str(name),
                    name => path = format!("{path}.{name}"),
                }
            }
            path
        })
    }
}

impl Pointer {
    fn parse(text: &str) -> Result<Self, String> {
        if !text.is_empty() && !text.starts_with('/') {
            return Err(format!("{text:?} is not a path such as /data/*/url"));
        }
        let steps = text.split('/').skip(1);
        let plain = |step: &str| step.replace("~1", "/").replace("~0", "~");
        Ok(Self(steps.map(plain).collect()))
    }

    /// The values there; `null` counts as none.
    fn all<'a>(&self, answer: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![answer];
        for step in &self.0 {
            found = found
                .into_iter()
                .flat_map(|value| match value {
                    Value::Array(items) if step == "*" => items.iter().collect(),
                    Value::Array(items) => {
                        let index = step.parse::<usize>().ok();
                        index.and_then(|i| items.get(i)).into_iter().collect()
                    }
                    value => value.get(step).into_iter().collect::<Vec<_>>(),
                })
                .collect();
        }
        found.retain(|value| !value.is_null());
        found
    }
}

impl<'de> Deserialize<'de> for Pointers {
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
        let pointers = texts.iter().map(|text| Pointer::parse(text));
        pointers
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(texts: &[&str]) -> Pointers {
        serde_json::from_value(json!(texts)).unwrap()
    }

    #[test]
    fn the_first_location_with_a_value_counts() {
        let answer = json!({"data": [{"url": "a"}, {"url": ["b", "c"]}, {"url": null}, {}],
            "result_url": "d", "a/b": {"~": 1}, "none": null});
        let urls = pointers(&["/none", "/data/*/url", "/result_url"]);
        assert_eq!(urls.texts(&answer), ["a", "b", "c"]);
        assert_eq!(pointers(&["/nothing", "/result_url"]).texts(&answer), ["d"]);
        assert_eq!(pointers(&["/data/0/url"]).find(&answer), Some(&json!("a")));
        assert_eq!(pointers(&["/a~1b/~0"]).find(&answer), Some(&json!(1)));
        assert_eq!(pointers(&[""]).find(&answer), Some(&answer));
        for nothing in ["/data/4", "/data/x", "/none", "/result_url/0", "/none/*"] {
            assert_eq!(pointers(&[nothing]).find(&answer), None, "{nothing}");
        }
    }

    #[test]
    fn locations_begin_with_a_slash() {
        let error = serde_json::from_str::<Pointers>("\"data\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"data\" is not a path such as /data/*/url"
        );
    }

    #[test]
    fn locations_of_images_are_written_for_the_scanner() {
        let texts = pointers(&["/result/images/*/b64_json", "/images/*"]);
        let said: Vec<String> = texts.scanned().collect();
        assert_eq!(said, ["result.images[].b64_json", "images[]"]);
    }
}
