//! The fields of a request before validation: the same from JSON bodies and from forms. Nothing is parsed before
//! its length is checked, and values are kept as slices of the body.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    inline,
    sources::{Source, Sources},
};
use crate::{
    backend::catalog::Requirements,
    http::error::ApiError,
    images::request::{
        self, Count, PROMPT_CHARS_MAX, Params, Pieces, Role, Unparsed, VALUE_BYTES_MAX,
    },
    tasks::StoredReference,
};

/// A character has at most four bytes, or twelve if JSON writes it as two escapes.
const PROMPT_BYTES_MAX: usize = PROMPT_CHARS_MAX * 4;
const PROMPT_JSON_BYTES_MAX: usize = PROMPT_CHARS_MAX * 12 + 2;
/// Maximum number of fields in a JSON body. Clients send about twenty.
const FIELDS_MAX: usize = 256;

/// The fields of a request.
#[derive(Debug)]
pub(super) struct Fields {
    /// All fields but the images.
    pub params: Params,
    /// The references, in the order sent.
    pub references: Sources,
    /// The mask, if sent.
    pub mask: Option<Source>,
}

/// A text part of a form, unless it exceeds its limit.
#[derive(Debug)]
pub(super) enum Part {
    /// All bytes of its value.
    Whole(Bytes),
    /// The value was discarded.
    TooLong,
}

impl Part {
    /// The number of bytes kept.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong => 0,
        }
    }
}

impl Fields {
    /// No fields yet; keeps at most `references_max` references.
    pub(super) fn new(references_max: usize) -> Self {
        Self {
            params: Params::default(),
            references: Sources::new(references_max),
            mask: None,
        }
    }

    /// Parses a JSON body; 400 if it is malformed or a field has the wrong type.
    pub(super) fn from_json(body: &Bytes, references_max: usize) -> Result<Self, ApiError> {
        let object: Object<'_> = serde_json::from_slice(body).map_err(malformed)?;
        let mut fields = Self::new(references_max);
        for (name, value) in object.0 {
            // No known field or option has a longer name.
            if name.get().len() <= VALUE_BYTES_MAX
                && let Ok(name) = serde_json::from_str::<String>(name.get())
            {
                fields.set_json(&name, body, value)?;
            }
        }
        Ok(fields)
    }

    fn set_json(&mut self, name: &str, body: &Bytes, value: &RawValue) -> Result<(), ApiError> {
        let text = value.get();
        if text == "null" {
            return Ok(());
        }
        match name {
            "n" => self.params.n = Some(count(text.trim_matches('"'))),
            "stream" => self.params.wants_stream = is_true(text.trim_matches('"')),
            "image_urls" | "image_input" | "images" | "image" => {
                self.references.take_json(name, body, value)?;
            }
            "mask" => {
                let mut masks = Sources::new(1);
                masks.take_json(name, body, value)?;
                self.mask = one_mask(masks)?.or(self.mask.take());
            }
            _ => self.set_text(name, body, value)?,
        }
        Ok(())
    }

    fn set_text(&mut self, name: &str, body: &Bytes, value: &RawValue) -> Result<(), ApiError> {
        let Some((field, limit)) = self.text(name) else {
            let value = body.slice_ref(value.get().as_bytes());
            self.params.options.push(name, Unparsed::json(value));
            return Ok(());
        };
        if value.get().len() > limit.of_json() {
            return Err(limit.exceeded(name));
        }
        let text = serde_json::from_str(value.get()).ok();
        let no_string = || ApiError::field(name, format!("{name} must be a string"));
        *field = Some(text.ok_or_else(no_string)?);
        Ok(())
    }

    /// Adds one text part of a form; 400 if it is malformed or too long.
    pub(super) fn set_form(&mut self, name: &str, part: Part) -> Result<(), ApiError> {
        let name = base_name(name);
        let Part::Whole(bytes) = part else {
            if let Some((_, limit)) = self.text(name) {
                return Err(limit.exceeded(name));
            }
            self.params.options.push(name, Unparsed::TooLong);
            return Ok(());
        };
        let no_text = || ApiError::bad_request("a text part is not UTF-8");
        let text = std::str::from_utf8(&bytes).ok().ok_or_else(no_text)?;
        match name {
            "n" => self.params.n = Some(count(text)),
            "stream" => self.params.wants_stream = is_true(text),
            "image_urls" | "image_input" | "images" | "image" => {
                self.references.take_form(name, bytes)?;
            }
            "mask" => {
                let mut masks = Sources::new(1);
                masks.take_form(name, bytes)?;
                self.mask = one_mask(masks)?.or(self.mask.take());
            }
            _ => match self.text(name) {
                Some((field, _)) => *field = Some(text.to_owned()),
                None => self.params.options.push(name, Unparsed::Text(bytes)),
            },
        }
        Ok(())
    }

    /// Adds one file part of a form.
    pub(super) fn set_file(&mut self, name: &str, file: StoredReference) {
        match role(name) {
            Role::Mask => self.mask = Some(Source::File(file)),
            Role::Reference => self.references.push(Source::File(file)),
        }
    }

    /// What the images so far require of a route.
    pub(super) fn requirements(&self) -> Requirements {
        Requirements {
            references: self.references.given,
            mask: self.mask.is_some(),
        }
    }

    /// The parameters and the images, wherever in the body they were.
    pub(super) fn into_parts(self) -> (Params, request::Sources) {
        let references = self.references.list.into_iter();
        let sources = request::Sources {
            references: references.map(located).collect(),
            given: self.references.given,
            mask: self.mask.map(located),
        };
        (self.params, sources)
    }

    /// The text field of this name and its limit; `None` if there is no such text field.
    fn text(&mut self, name: &str) -> Option<(&mut Option<String>, Limit)> {
        let field = match name {
            "model" => &mut self.params.model,
            "prompt" => return Some((&mut self.params.prompt, Limit::Prompt)),
            "size" => &mut self.params.size,
            "resolution" => &mut self.params.resolution,
            "quality" => &mut self.params.quality,
            "response_format" => &mut self.params.response_format,
            _ => return None,
        };
        Some((field, Limit::Value))
    }
}

/// Clients send `2`, `2.0` and `"2"` for the same number.
fn count(text: &str) -> Count {
    let text = text.trim();
    let whole = text.trim_end_matches('0').strip_suffix('.').unwrap_or(text);
    whole.parse().map_or(Count::NotANumber, Count::Given)
}

fn located(source: Source) -> request::Source {
    match source {
        Source::File(file) => request::Source::Stored(file),
        Source::Text(text) if text.is_data_url() => {
            let pieces = inline::pieces(&text);
            request::Source::Inline(pieces.map(|pieces| Box::new(pieces) as Pieces))
        }
        Source::Text(text) => request::Source::Address(text.address().map(Cow::into_owned)),
    }
}

/// The length limit of a text field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Prompt,
    Value,
}

impl Limit {
    fn of_json(self) -> usize {
        match self {
            Self::Prompt => PROMPT_JSON_BYTES_MAX,
            Self::Value => VALUE_BYTES_MAX,
        }
    }

    fn exceeded(self, name: &str) -> ApiError {
        let allowed = match self {
            Self::Prompt => format!("{PROMPT_CHARS_MAX} characters"),
            Self::Value => format!("{VALUE_BYTES_MAX} bytes"),
        };
        ApiError::field(name, format!("{name} must have at most {allowed}"))
    }
}

/// Maximum size of a text part; `None` if it may hold images, so that only the limit of the whole body applies.
pub(super) fn part_bytes_max(name: &str) -> Option<usize> {
    match base_name(name) {
        "prompt" => Some(PROMPT_BYTES_MAX),
        name if takes_file(name) => None,
        _ => Some(VALUE_BYTES_MAX),
    }
}

/// Whether a part of this name is an image or a mask: `image`, `image[]`, `image[0]`, `mask`, `mask[0]`.
pub(super) fn takes_file(name: &str) -> bool {
    matches!(
        base_name(name),
        "image" | "images" | "image_input" | "image_urls" | "mask"
    )
}

/// What the file in a part of this name is for.
pub(super) fn role(name: &str) -> Role {
    match base_name(name) {
        "mask" => Role::Mask,
        _ => Role::Reference,
    }
}

/// The name without an index: `image` for `image[]` and `image[0]`.
fn base_name(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

fn is_true(text: &str) -> bool {
    matches!(text.trim(), "1") || text.trim().eq_ignore_ascii_case("true")
}

fn one_mask(mut masks: Sources) -> Result<Option<Source>, ApiError> {
    match masks.given {
        0 | 1 => Ok(masks.list.pop()),
        _ => Err(ApiError::field("mask", "mask must be one image")),
    }
}

/// The fields of a JSON object, with names and values not yet parsed.
struct Object<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object<'de>, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(M::Error::custom(TOO_MANY_FIELDS));
                    }
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

const TOO_MANY_FIELDS: &str = "a body may have 256 fields";

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn malformed(error: serde_json::Error) -> ApiError {
    let text = error.to_string();
    if text.starts_with(TOO_MANY_FIELDS) {
        return ApiError::bad_request(TOO_MANY_FIELDS);
    }
    ApiError::bad_request(format!("malformed JSON: {text}")).code("invalid_json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &str) -> Result<Fields, ApiError> {
        Fields::from_json(&Bytes::copy_from_slice(body.as_bytes()), 16)
    }

    fn urls(fields: &Fields) -> Vec<String> {
        let texts = fields.references.list.iter().map(|source| match source {
            Source::Text(text) => text.address().unwrap().into_owned(),
            Source::File(_) => unreachable!(),
        });
        texts.collect()
    }

    #[test]
    fn images_are_found_in_every_spelling() {
        for body in [
            r#"{"image_urls":["a","b"]}"#,
            r#"{"image_urls":[{"url":"a"},"b"]}"#,
            r#"{"image_urls":"a","image_input":"b"}"#,
            r#"{"images":[{"image_url":"a"},{"image_url":{"url":"b"}}]}"#,
            r#"{"image":["a","b"]}"#,
            r#"{"image":{"url":"a","type":"image_url"},"images":[{"url":"b"}]}"#,
            r#"{"image_urls":null,"image":["","a"],"image_input":[{"url":"b"}]}"#,
            r#"{"image_url\u0073":["\u0061","b"]}"#,
        ] {
            let fields = json(body).unwrap();
            assert_eq!(urls(&fields), ["a", "b"], "{body}");
            assert_eq!(fields.references.given, 2, "{body}");
        }
    }

    #[test]
    fn invalid_images_are_refused_with_the_field_name() {
        for body in [
            r#"{"image":5}"#,
            r#"{"image":[["a"]]}"#,
            r#"{"image":[{"file_id":"x"}]}"#,
            r#"{"image":{"url":7}}"#,
        ] {
            let error = json(body).unwrap_err();
            assert_eq!(error.body().param, "image", "{body}");
        }
    }

    #[test]
    fn images_beyond_the_limit_are_counted_and_not_kept() {
        let list = vec!["\"a\""; 1000].join(",");
        let fields = json(&format!(r#"{{"image_urls":[{list}],"image":"b"}}"#)).unwrap();
        assert_eq!(fields.references.given, 1001);
        assert_eq!(fields.references.list.len(), 16);
    }

    #[test]
    fn too_many_fields_are_refused_whatever_their_names() {
        let body = |field: &dyn Fn(usize) -> String, count: usize| {
            let fields: Vec<String> = (0..count).map(field).collect();
            format!("{{{}}}", fields.join(","))
        };
        let same = |_| r#""a":1"#.to_owned();
        let different = |index| format!(r#""a{index}":1"#);
        let fields: [&dyn Fn(usize) -> String; 2] = [&same, &different];
        for field in fields {
            assert!(json(&body(field, 256)).is_ok());
            let error = json(&body(field, 257)).unwrap_err();
            assert_eq!(error.body().message, TOO_MANY_FIELDS);
        }
    }

    #[test]
    fn texts_are_limited_by_field() {
        let long = "x".repeat(VALUE_BYTES_MAX);
        let error = json(&format!(r#"{{"size":"{long}"}}"#)).unwrap_err();
        let message = "size must have at most 4096 bytes";
        assert_eq!(error.body().message, message);
        let escapes = r"\ud83d\udc08".repeat(PROMPT_CHARS_MAX);
        let prompt = json(&format!(r#"{{"prompt":"{escapes}"}}"#))
            .unwrap()
            .params
            .prompt;
        assert_eq!(prompt.unwrap().chars().count(), PROMPT_CHARS_MAX);
        let error = json(&format!(r#"{{"prompt":"{escapes}x"}}"#)).unwrap_err();
        let message = "prompt must have at most 32000 characters";
        assert_eq!(error.body().message, message);
        let error = Fields::new(16).set_form("prompt", Part::TooLong);
        assert_eq!(error.unwrap_err().body().message, message);
    }

    #[test]
    fn forms_and_json_give_the_same_fields() {
        let mut fields = Fields::new(16);
        for (name, text) in [
            ("n", " 2 "),
            ("image_urls", r#"["a",{"url":"b"}]"#),
            ("image_urls[]", "c"),
            ("image", " "),
            ("stream", "1"),
        ] {
            let part = Part::Whole(Bytes::from_static(text.as_bytes()));
            fields.set_form(name, part).unwrap();
        }
        assert!(matches!(fields.params.n, Some(Count::Given(2))));
        assert_eq!(urls(&fields), ["a", "b", "c"]);
        assert!(fields.params.wants_stream);
    }

    #[test]
    fn counts_are_integers() {
        for (text, expected) in [("2", 2), ("\"2\"", 2), ("2.0", 2), ("10", 10), ("100", 100)] {
            let fields = json(&format!(r#"{{"n":{text}}}"#)).unwrap();
            assert!(
                matches!(fields.params.n, Some(Count::Given(n)) if n == expected),
                "{text}"
            );
        }
        for bad in [
            "1.5", "-1", "1e9", "[]", "true", "\"two\"", "\"\"", "\"2.5\"",
        ] {
            let fields = json(&format!(r#"{{"n":{bad}}}"#)).unwrap();
            assert!(matches!(fields.params.n, Some(Count::NotANumber)), "{bad}");
        }
    }

    #[test]
    fn stream_is_read_in_every_spelling() {
        for (body, wanted) in [
            (r#"{"stream":true}"#, true),
            (r#"{"stream":"true"}"#, true),
            (r#"{"stream":"1"}"#, true),
            (r#"{"stream":false}"#, false),
            (r#"{"stream":null}"#, false),
            (r#"{"stream":"","partial_images":2}"#, false),
        ] {
            assert_eq!(json(body).unwrap().params.wants_stream, wanted, "{body}");
        }
    }
}
