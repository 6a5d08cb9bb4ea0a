//! What clients ask for, field by field, before it is valid: the same fields from JSON and from forms.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{http::error::ApiError, tasks::StoredReference};

/// The fields of a request, as far as they were sent. Texts borrow from the body.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub model: Option<String>,
    pub prompt: Option<String>,
    pub n: Option<Count>,
    pub size: Option<String>,
    pub resolution: Option<String>,
    pub quality: Option<String>,
    pub response_format: Option<String>,
    pub references: Vec<Source<'a>>,
    pub mask: Option<Source<'a>>,
    /// What is left: for backends that know it.
    pub options: Map<String, Value>,
}

/// Where an image comes from.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// A URL, or a `data:` URL.
    Text(Cow<'a, str>),
    /// A file of the form, stored already.
    File(StoredReference),
}

/// `n`, or what stands in its place.
#[derive(Debug)]
pub(super) enum Count {
    Given(u64),
    NotANumber,
}

/// A text that borrows from the body where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    /// Reads a JSON body.
    pub(super) fn from_json(body: &'a [u8]) -> Result<Self, ApiError> {
        let malformed = |error: serde_json::Error| {
            ApiError::bad_request(format!("malformed JSON: {error}")).code("invalid_json")
        };
        let object: Object<'a> = serde_json::from_slice(body).map_err(malformed)?;
        let mut fields = Self::default();
        for (name, value) in object.0 {
            fields.set_json(&name, value)?;
        }
        Ok(fields)
    }

    fn set_json(&mut self, name: &str, value: &'a RawValue) -> Result<(), ApiError> {
        if value.get() == "null" {
            return Ok(());
        }
        match name {
            "n" => {
                let count = serde_json::from_str(value.get());
                self.n = Some(count.map_or(Count::NotANumber, Count::Given));
            }
            "image_urls" | "image_input" | "images" | "image" => {
                collect(name, value, &mut self.references)?;
            }
            "mask" => self.mask = single(name, value)?,
            _ => {
                if let Some(field) = self.text(name) {
                    let text: Text<'_> = serde_json::from_str(value.get())
                        .ok()
                        .ok_or_else(|| ApiError::field(name, format!("{name} must be a string")))?;
                    *field = Some(text.0.into_owned());
                } else if let Ok(value) = serde_json::from_str(value.get()) {
                    self.set_option(name, value);
                }
            }
        }
        Ok(())
    }

    /// Takes one text part of a form.
    pub(super) fn set_form(&mut self, name: &str, text: String) -> Result<(), ApiError> {
        match base_name(name) {
            "n" => {
                let count = text.trim().parse();
                self.n = Some(count.map_or(Count::NotANumber, Count::Given));
            }
            name @ ("image_urls" | "image_input" | "images" | "image") => {
                for source in form_sources(name, text)? {
                    self.references.push(source);
                }
            }
            name @ "mask" => self.mask = form_sources(name, text)?.pop(),
            name => {
                if let Some(field) = self.text(name) {
                    *field = Some(text);
                } else {
                    self.set_option(name, plain_value(text));
                }
            }
        }
        Ok(())
    }

    /// Takes one file part of a form. `false` if no such file is known.
    pub(super) fn set_file(&mut self, name: &str, file: StoredReference) {
        if is_mask(name) {
            self.mask = Some(Source::File(file));
        } else {
            self.references.push(Source::File(file));
        }
    }

    /// PostgreSQL's JSON has no character NUL: an option that holds one is worth no error, nor a task.
    fn set_option(&mut self, name: &str, value: Value) {
        let storable = !name.contains('\0') && !value.to_string().contains("\\u0000");
        if storable {
            self.options.insert(name.to_owned(), value);
        }
    }

    fn text(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "model" => Some(&mut self.model),
            "prompt" => Some(&mut self.prompt),
            "size" => Some(&mut self.size),
            "resolution" => Some(&mut self.resolution),
            "quality" => Some(&mut self.quality),
            "response_format" => Some(&mut self.response_format),
            _ => None,
        }
    }
}

/// Whether a file part is an image or a mask, by its name: `image`, `image[]`, `image[0]`, `mask`.
pub(super) fn takes_file(name: &str) -> bool {
    is_mask(name)
        || matches!(
            base_name(name),
            "image" | "images" | "image_input" | "image_urls"
        )
}

/// `image` of `image[]` and `image[0]`.
fn base_name(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

fn is_mask(name: &str) -> bool {
    matches!(name, "mask" | "mask[]")
}

/// The fields of a JSON object, their values not yet read.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> serde::de::Visitor<'de> for Visitor<'a> {
            type Value = Object<'a>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: serde::de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> Result<Object<'a>, M::Error> {
                let mut fields = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

/// A string, a list, or objects with `url` or `image_url`, in any mixture.
fn collect<'a>(
    name: &str,
    value: &'a RawValue,
    sources: &mut Vec<Source<'a>>,
) -> Result<(), ApiError> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => {
            let Text(text) = serde_json::from_str(text)
                .ok()
                .ok_or_else(|| not_an_image(name))?;
            // Clients send an empty string where there is no image.
            if !text.is_empty() {
                sources.push(Source::Text(text));
            }
            Ok(())
        }
        Some(b'[') => {
            let list: Vec<&RawValue> = serde_json::from_str(text)
                .ok()
                .ok_or_else(|| not_an_image(name))?;
            list.into_iter()
                .try_for_each(|value| collect_one(name, value, sources))
        }
        _ => collect_one(name, value, sources),
    }
}

fn collect_one<'a>(
    name: &str,
    value: &'a RawValue,
    sources: &mut Vec<Source<'a>>,
) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Linked<'a> {
        #[serde(borrow)]
        url: Option<&'a RawValue>,
        #[serde(borrow)]
        image_url: Option<&'a RawValue>,
    }
    match value.get().as_bytes().first() {
        Some(b'"') => collect(name, value, sources),
        Some(b'{') => {
            let linked: Linked<'a> = serde_json::from_str(value.get())
                .ok()
                .ok_or_else(|| not_an_image(name))?;
            let inner = linked
                .url
                .or(linked.image_url)
                .ok_or_else(|| not_an_image(name))?;
            // One level of {"image_url": {"url": …}} is as deep as any client goes.
            let inner = match serde_json::from_str::<Linked<'a>>(inner.get()) {
                Ok(Linked { url: Some(url), .. }) => url,
                _ => inner,
            };
            if inner.get().starts_with('"') {
                collect(name, inner, sources)
            } else {
                Err(not_an_image(name))
            }
        }
        _ => Err(not_an_image(name)),
    }
}

fn single<'a>(name: &str, value: &'a RawValue) -> Result<Option<Source<'a>>, ApiError> {
    let mut sources = Vec::new();
    collect(name, value, &mut sources)?;
    match sources.len() {
        0 | 1 => Ok(sources.pop()),
        _ => Err(ApiError::field(name, format!("{name} must be one image"))),
    }
}

/// A form's text may hold what JSON would: a list, or an object.
fn form_sources(name: &str, text: String) -> Result<Vec<Source<'static>>, ApiError> {
    if text.trim_start().starts_with(['[', '{']) {
        let value: &RawValue = serde_json::from_str(&text)
            .ok()
            .ok_or_else(|| not_an_image(name))?;
        let mut sources = Vec::new();
        collect(name, value, &mut sources)?;
        return Ok(sources.into_iter().map(Source::into_owned).collect());
    }
    let given = !text.is_empty();
    Ok(given
        .then(|| Source::Text(text.into()))
        .into_iter()
        .collect())
}

impl Source<'_> {
    fn into_owned(self) -> Source<'static> {
        match self {
            Source::Text(text) => Source::Text(text.into_owned().into()),
            Source::File(file) => Source::File(file),
        }
    }
}

/// Forms have no types: what reads as a number or a boolean is one.
fn plain_value(text: String) -> Value {
    match serde_json::from_str(&text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text),
    }
}

fn not_an_image(name: &str) -> ApiError {
    ApiError::field(
        name,
        format!("{name} must be an https:// or data: URL, a list of them, or of objects with url"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(body: &str) -> Vec<String> {
        let fields = Fields::from_json(body.as_bytes()).unwrap();
        fields
            .references
            .into_iter()
            .map(|source| match source {
                Source::Text(text) => text.into_owned(),
                Source::File(_) => unreachable!(),
            })
            .collect()
    }

    #[test]
    fn images_are_found_in_all_spellings() {
        for body in [
            r#"{"image_urls":["a","b"]}"#,
            r#"{"image_urls":[{"url":"a"},"b"]}"#,
            r#"{"image_urls":"a","image_input":"b"}"#,
            r#"{"images":[{"image_url":"a"},{"image_url":{"url":"b"}}]}"#,
            r#"{"image":["a","b"]}"#,
            r#"{"image":{"url":"a","type":"image_url"},"images":[{"url":"b"}]}"#,
            r#"{"image_urls":null,"image":["","a"],"image_input":[{"url":"b"}]}"#,
        ] {
            assert_eq!(urls(body), ["a", "b"], "{body}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        for body in [
            r#"{"image":5}"#,
            r#"{"image":[["a"]]}"#,
            r#"{"image":[{"file_id":"x"}]}"#,
        ] {
            let error = Fields::from_json(body.as_bytes()).unwrap_err();
            assert_eq!(error.fault().param, "image", "{body}");
        }
    }

    #[test]
    fn a_json_body_is_not_copied_to_find_its_images() {
        let body = br#"{"image":"data:image/png;base64,AAAA"}"#.to_vec();
        let fields = Fields::from_json(&body).unwrap();
        assert!(matches!(
            &fields.references[0],
            Source::Text(Cow::Borrowed(_))
        ));
    }

    #[test]
    fn forms_say_the_same_as_json() {
        let mut fields = Fields::default();
        for (name, text) in [
            ("n", " 2 "),
            ("image_urls", r#"["a",{"url":"b"}]"#),
            ("image_urls[]", "c"),
            ("output_compression", "80"),
            ("background", "opaque"),
        ] {
            fields.set_form(name, text.to_owned()).unwrap();
        }
        assert!(matches!(fields.n, Some(Count::Given(2))));
        assert_eq!(fields.references.len(), 3);
        assert_eq!(fields.options["output_compression"], 80);
        assert_eq!(fields.options["background"], "opaque");
    }

    #[test]
    fn counts_are_integers() {
        for bad in ["1.5", "\"2\"", "-1", "1e9", "[]", "true"] {
            let body = format!(r#"{{"n":{bad}}}"#);
            let fields = Fields::from_json(body.as_bytes()).unwrap();
            assert!(matches!(fields.n, Some(Count::NotANumber)), "{bad}");
        }
    }
}
