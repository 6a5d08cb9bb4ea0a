//! The image sources of a request: accepts every spelling that clients use, and counts sources while reading.
//! A source is kept as a slice of the body, not as a copy.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{http::error::ApiError, images::request::URL_BYTES_MAX, tasks::StoredReference};

/// The image sources of a request, up to a maximum count.
#[derive(Debug)]
pub(super) struct Sources {
    /// The first sources, up to the maximum.
    pub list: Vec<Source>,
    /// The number of sources in the request, including those not in the list.
    pub given: usize,
    count_max: usize,
}

/// The source of one image.
#[derive(Debug)]
pub(super) enum Source {
    /// An address or a `data:` URL.
    Text(Text),
    /// A file part of a form, already stored.
    File(StoredReference),
}

/// A string as a slice of the body.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// UTF-8, without quotation marks.
    bytes: Bytes,
    /// Whether it contains JSON escapes.
    pub is_escaped: bool,
}

impl Sources {
    /// No sources yet; keeps at most `count_max`.
    pub(super) fn new(count_max: usize) -> Self {
        Self {
            list: Vec::new(),
            given: 0,
            count_max,
        }
    }

    /// Counts a source, and keeps it unless the list is full.
    pub(super) fn push(&mut self, source: Source) {
        self.given += 1;
        if self.list.len() < self.count_max {
            self.list.push(source);
        }
    }

    /// Adds the value of a JSON field: a string, an object with `url` or `image_url`, or a list of those.
    pub(super) fn take_json(
        &mut self,
        name: &str,
        body: &Bytes,
        value: &RawValue,
    ) -> Result<(), ApiError> {
        if !value.get().starts_with('[') {
            return self.take_one(name, body, value);
        }
        let list = List {
            name,
            body,
            sources: self,
        };
        let mut deserializer = serde_json::Deserializer::from_str(value.get());
        list.deserialize(&mut deserializer)
            .unwrap_or_else(|_| Err(not_an_image(name)))
    }

    /// Adds a text part of a form: an address, or the JSON that [`Sources::take_json`] accepts.
    pub(super) fn take_form(&mut self, name: &str, text: Bytes) -> Result<(), ApiError> {
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        if let Some(b'[' | b'{') = first {
            let value: &RawValue = serde_json::from_slice(&text)
                .ok()
                .ok_or_else(|| not_an_image(name))?;
            return self.take_json(name, &text, value);
        }
        if first.is_some() {
            self.push(Source::Text(Text::plain(text)));
        }
        Ok(())
    }

    fn take_one(&mut self, name: &str, body: &Bytes, value: &RawValue) -> Result<(), ApiError> {
        let url = match value.get().as_bytes().first() {
            Some(b'"') => value,
            Some(b'{') => linked(value).ok_or_else(|| not_an_image(name))?,
            _ => return Err(not_an_image(name)),
        };
        let text = Text::of_json(body, url).ok_or_else(|| not_an_image(name))?;
        // Some clients send an empty string for no image.
        if !text.bytes.is_empty() {
            self.push(Source::Text(text));
        }
        Ok(())
    }
}

impl Text {
    fn plain(bytes: Bytes) -> Self {
        Self {
            bytes,
            is_escaped: false,
        }
    }

    /// The text of a JSON string; `None` if the value is not a string.
    fn of_json(body: &Bytes, value: &RawValue) -> Option<Self> {
        let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
        Some(Self {
            bytes: body.slice_ref(inner.as_bytes()),
            is_escaped: memchr::memchr(b'\\', inner.as_bytes()).is_some(),
        })
    }

    /// Whether it starts with `data:`.
    pub(super) fn is_data_url(&self) -> bool {
        self.bytes
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
    }

    /// The parts of a data URL before and after its comma.
    pub(super) fn split_data_url(&self) -> Option<(String, Self)> {
        /// Maximum length of the part before the comma, such as `data:image/png;base64`, with its parameters.
        const HEAD_BYTES_MAX: usize = 256;
        let searched = &self.bytes[..self.bytes.len().min(HEAD_BYTES_MAX)];
        let comma = memchr::memchr(b',', searched)?;
        let head = Self {
            bytes: self.bytes.slice(..comma),
            is_escaped: self.is_escaped,
        };
        let data = Self {
            bytes: self.bytes.slice(comma + 1..),
            is_escaped: self.is_escaped,
        };
        Some((head.read()?.into_owned(), data))
    }

    /// The text as an address; `None` if it is too long.
    pub(super) fn address(&self) -> Option<Cow<'_, str>> {
        (self.bytes.len() <= URL_BYTES_MAX).then(|| self.read())?
    }

    /// The bytes as they are in the body, with any escapes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn read(&self) -> Option<Cow<'_, str>> {
        let text = std::str::from_utf8(&self.bytes).ok()?;
        if self.is_escaped {
            let quoted = format!("\"{text}\"");
            serde_json::from_str(&quoted).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(text))
        }
    }
}

/// Reads a JSON list, and keeps only the sources that [`Sources::push`] keeps.
struct List<'a> {
    name: &'a str,
    body: &'a Bytes,
    sources: &'a mut Sources,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Result<(), ApiError>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Result<(), ApiError>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut taken = Ok(());
        while let Some(value) = list.next_element::<&RawValue>()? {
            if taken.is_ok() {
                taken = self.sources.take_one(self.name, self.body, value);
            }
        }
        Ok(taken)
    }
}

/// The address in an object that names an image.
fn linked(value: &RawValue) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct Linked<'a> {
        #[serde(borrow)]
        url: Option<&'a RawValue>,
        #[serde(borrow)]
        image_url: Option<&'a RawValue>,
    }
    let linked: Linked<'_> = serde_json::from_str(value.get()).ok()?;
    let inner = linked.url.or(linked.image_url)?;
    // No client nests deeper than {"image_url": {"url": …}}.
    match serde_json::from_str::<Linked<'_>>(inner.get()) {
        Ok(Linked { url: Some(url), .. }) => Some(url),
        _ => Some(inner),
    }
}

fn not_an_image(name: &str) -> ApiError {
    ApiError::field(
        name,
        format!("{name} must be an https:// or data: URL, a list of them, or of objects with url"),
    )
}
