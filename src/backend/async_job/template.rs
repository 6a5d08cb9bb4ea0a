//! The body of a submit, as a description writes it: JSON with placeholders such as `{prompt}`.
//!
//! A text that is a single placeholder becomes the value, with its own type; in a longer text the value is
//! written out. Placeholders without a value are omitted, and so are lists and tables that become empty.
//! A list item that contains `{reference}` is repeated for each reference.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value, json};

use crate::{backend::GenerateRequest, image::ImageSize};

/// The names that may be in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Placeholder {
    /// The prompt.
    Prompt,
    /// The upstream's name for the model.
    Model,
    /// The width in pixels.
    Width,
    /// The height in pixels.
    Height,
    /// The aspect ratio, such as `16:9`.
    Ratio,
    /// The resolution, `1k` or `2k`.
    Resolution,
    /// The number of images.
    N,
    /// The quality, if the backend may set it: `low`, `medium` or `high`.
    Quality,
    /// The client's seed.
    Seed,
    /// All references, as a list.
    References,
    /// One reference, in a list item that is repeated for each.
    Reference,
    /// The reference with this index.
    ReferenceAt(usize),
    /// The mask.
    Mask,
    /// The client's parameter of this name.
    Option(String),
    /// The upstream's name for the job: in paths only.
    Named,
}

/// A text with placeholders in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(pub(super) Vec<Piece>);

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Copied as it is.
    Plain(String),
    /// Replaced by the value.
    Value(Placeholder),
}

/// A body with placeholders in it.
#[derive(Clone, Debug)]
pub(super) enum Template {
    /// Anything without placeholders: a number, a boolean or null.
    Constant(Value),
    /// A text, which may hold placeholders.
    Text(Text),
    /// A list, without the items that have no value.
    List(Vec<Template>),
    /// A table, without the fields that have no value.
    Table(Vec<(String, Template)>),
}

/// The values for a template.
pub(super) struct Values<'a> {
    /// The request to fill in.
    pub(super) request: &'a GenerateRequest,
    /// The size to request from the upstream.
    pub(super) size: ImageSize,
    /// How the references are written in the body.
    pub(super) references: Vec<Value>,
    /// How the mask is written in the body; `None`: the request has none.
    pub(super) mask: Option<Value>,
}

impl Placeholder {
    fn parse(name: &str) -> Result<Self, String> {
        let numbered = name.strip_prefix("reference_");
        Ok(match name {
            "prompt" => Self::Prompt,
            "model" => Self::Model,
            "width" => Self::Width,
            "height" => Self::Height,
            "ratio" => Self::Ratio,
            "resolution" => Self::Resolution,
            "n" => Self::N,
            "quality" => Self::Quality,
            "seed" => Self::Seed,
            "references" => Self::References,
            "reference" => Self::Reference,
            "mask" => Self::Mask,
            "job" => Self::Named,
            _ => match (numbered.map(str::parse), name.strip_prefix("options.")) {
                (Some(Ok(number @ 1..=16)), _) => Self::ReferenceAt(number - 1),
                (_, Some(option)) if !option.is_empty() => Self::Option(option.to_owned()),
                _ => return Err(format!("unknown placeholder {{{name}}}")),
            },
        })
    }
}

impl Text {
    /// Parses a text. Fails on a brace without its end and on an unknown name, and says which.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((plain, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("{text:?} has a {{ without a }}"));
            };
            if !plain.is_empty() {
                pieces.push(Piece::Plain(plain.to_owned()));
            }
            pieces.push(Piece::Value(Placeholder::parse(name)?));
            rest = after;
        }
        if !rest.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Plain(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// The placeholders in it, in order.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Plain(_) => None,
            Piece::Value(placeholder) => Some(placeholder),
        })
    }

    fn fill(&self, values: &Values<'_>, each: usize) -> Option<Value> {
        if let [Piece::Value(placeholder)] = self.0.as_slice() {
            return values.of(placeholder, each);
        }
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Plain(plain) => text.push_str(plain),
                Piece::Value(placeholder) => match values.of(placeholder, each)? {
                    Value::String(value) => text.push_str(&value),
                    value => text.push_str(&value.to_string()),
                },
            }
        }
        Some(Value::String(text))
    }
}

impl Template {
    fn parse(value: Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => Self::Text(Text::parse(&text)?),
            Value::Array(items) => {
                let items = items.into_iter().map(Self::parse);
                Self::List(items.collect::<Result<_, _>>()?)
            }
            Value::Object(entries) => {
                let entries = entries.into_iter();
                let entries = entries.map(|(name, value)| Ok((name, Self::parse(value)?)));
                Self::Table(entries.collect::<Result<_, String>>()?)
            }
            constant => Self::Constant(constant),
        })
    }

    /// Every placeholder in the template.
    pub(super) fn placeholders(&self) -> Vec<&Placeholder> {
        match self {
            Self::Constant(_) => Vec::new(),
            Self::Text(text) => text.placeholders().collect(),
            Self::List(items) => items.iter().flat_map(Self::placeholders).collect(),
            Self::Table(entries) => {
                let values = entries.iter().map(|(_, value)| value);
                values.flat_map(Self::placeholders).collect()
            }
        }
    }

    /// Whether it is repeated for each reference; an inner list repeats its own items.
    fn is_repeated(&self) -> bool {
        match self {
            Self::Constant(_) | Self::List(_) => false,
            Self::Text(text) => text.placeholders().any(|p| *p == Placeholder::Reference),
            Self::Table(entries) => entries.iter().any(|(_, value)| value.is_repeated()),
        }
    }

    /// Fills in the values.
    pub(super) fn fill(&self, values: &Values<'_>) -> Value {
        self.filled(values, 0)
            .unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn filled(&self, values: &Values<'_>, each: usize) -> Option<Value> {
        match self {
            Self::Constant(value) => Some(value.clone()),
            Self::Text(text) => text.fill(values, each),
            Self::List(items) => {
                let filled = items.iter().flat_map(|item| {
                    let repeated = item.is_repeated();
                    let times = if repeated { values.references.len() } else { 1 };
                    (0..times).filter_map(move |each| item.filled(values, each))
                });
                let filled: Vec<Value> = filled.collect();
                (items.is_empty() || !filled.is_empty()).then_some(Value::Array(filled))
            }
            Self::Table(entries) => {
                let filled = entries
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), value.filled(values, each)?)));
                let filled: Map<String, Value> = filled.collect();
                (entries.is_empty() || !filled.is_empty()).then_some(Value::Object(filled))
            }
        }
    }
}

impl Values<'_> {
    fn of(&self, placeholder: &Placeholder, each: usize) -> Option<Value> {
        let request = self.request;
        Some(match placeholder {
            Placeholder::Prompt => json!(request.prompt),
            Placeholder::Model => json!(request.model),
            Placeholder::Width => json!(self.size.width),
            Placeholder::Height => json!(self.size.height),
            Placeholder::Ratio => json!(request.ratio.to_string()),
            Placeholder::Resolution => json!(request.resolution),
            Placeholder::N => json!(request.n),
            Placeholder::Quality => json!(request.quality?),
            Placeholder::Seed => {
                let seed = request.options.get("seed");
                seed.filter(|seed| seed.is_u64())?.clone()
            }
            Placeholder::References if self.references.is_empty() => return None,
            Placeholder::References => json!(self.references),
            Placeholder::Reference => self.references.get(each)?.clone(),
            Placeholder::ReferenceAt(index) => self.references.get(*index)?.clone(),
            Placeholder::Mask => self.mask.clone()?,
            Placeholder::Option(name) => {
                let given = request.options.get(name);
                given.filter(|value| !value.is_null())?.clone()
            }
            Placeholder::Named => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Map::deserialize(deserializer)?;
        Self::parse(Value::Object(entries)).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Resolution;

    fn request() -> GenerateRequest {
        GenerateRequest {
            model: "m".into(),
            prompt: "a {model} \"heron\"".into(),
            n: 2,
            ratio: "16:9".parse().unwrap(),
            resolution: Resolution::TwoK,
            size: ImageSize {
                width: 2048,
                height: 1152,
            },
            quality: None,
            references: vec![],
            mask: None,
            options: Map::new(),
            extra: Map::new(),
            job: None,
        }
    }

    fn filled(template: &str, references: &[&str]) -> Value {
        let request = request();
        let template: Template = toml::from_str(template).unwrap();
        template.fill(&Values {
            request: &request,
            size: request.size,
            references: references.iter().map(|text| json!(text)).collect(),
            mask: None,
        })
    }

    #[test]
    fn values_keep_their_types_and_absent_values_are_omitted() {
        let template = r#"
            prompt = "{prompt}"
            n = "{n}"
            size = "{width}*{height}"
            ratio = "{ratio} {resolution}"
            image_size = { width = "{width}", seed = "{seed}" }
            style = { name = "{quality}" }
            masks = ["{mask}"]
            background = "{options.background}"
            first = "{reference_1}"
            watermark = false
            steps = 4
            none = []"#;
        let expected = json!({"prompt": "a {model} \"heron\"", "n": 2, "size": "2048*1152",
            "ratio": "16:9 2k", "image_size": {"width": 2048}, "watermark": false, "steps": 4,
            "none": []});
        assert_eq!(filled(template, &[]), expected);
    }

    #[test]
    fn references_are_a_list_or_items_of_one() {
        let template = r#"
            images = "{references}"
            image_2 = "{reference_2}"
            all = [{ content = [{ type = "image", url = "{reference}" }, { text = "{prompt}!" }] }]"#;
        let expected = json!({"images": ["a", "b"], "image_2": "b", "all": [{"content": [
            {"type": "image", "url": "a"}, {"type": "image", "url": "b"},
            {"text": "a {model} \"heron\"!"}]}]});
        assert_eq!(filled(template, &["a", "b"]), expected);
        let without = json!({"all": [{"content": [{"text": "a {model} \"heron\"!"}]}]});
        assert_eq!(filled(template, &[]), without);
    }

    #[test]
    fn unknown_placeholders_are_errors() {
        for bad in [
            "{promt}",
            "{reference_0}",
            "{reference_17}",
            "{options.}",
            "{",
            "a {b",
        ] {
            assert!(Text::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Text::parse("}").unwrap(),
            Text(vec![Piece::Plain("}".into())])
        );
    }
}
