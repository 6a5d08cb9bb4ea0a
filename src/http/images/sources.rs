//! Where the images of a request come from: found in all the spellings that clients have for them, and
//! counted while they are read. What is kept of one is where it stands in the body.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{http::error::ApiError, tasks::StoredReference};

/// Of an address. A data URL is no address: its image is taken out of it.
pub(super) const URL_BYTES_MAX: usize = 8 << 10;

/// The images of a request, as far as they may be taken.
#[derive(Debug)]
pub(super) struct Sources {
    pub list: Vec<Source>,
    /// How many there were, whether or not they are in the list.
    pub given: usize,
    count_max: usize,
}

/// Where an image comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// An address, or a `data:` URL.
    Text(Text),
    /// A file of the form, stored already.
    File(StoredReference),
}

/// A text, where it stands in the body.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// UTF-8, without quotation marks.
    bytes: Bytes,
    /// Whether it has JSON's escapes in it.
    pub is_escaped: bool,
}

impl Source {
    /// Whether its image came inside the request and is not stored yet.
    pub(super) fn is_inline(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_data_url())
    }
}

impl Sources {
    pub(super) fn new(count_max: usize) -> Self {
        Self {
            list: Vec::new(),
            given: 0,
            count_max,
        }
    }

    pub(super) fn push(&mut self, source: Source) {
        self.given += 1;
        if self.list.len() < self.count_max {
            self.list.push(source);
        }
    }

    /// Takes a value of a JSON body: a string, an object with `url` or `image_url`, or a list of those.
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

    /// Takes a text part of a form: an address, or what a JSON body would have in its place.
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
        // Clients send an empty string where there is no image.
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

    /// `None` if the value is no string.
    fn of_json(body: &Bytes, value: &RawValue) -> Option<Self> {
        let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
        Some(Self {
            bytes: body.slice_ref(inner.as_bytes()),
            is_escaped: memchr::memchr(b'\\', inner.as_bytes()).is_some(),
        })
    }

    pub(super) fn is_data_url(&self) -> bool {
        self.bytes
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
    }

    /// What stands before the comma of a data URL, and what after it.
    pub(super) fn split_data_url(&self) -> Option<(String, Self)> {
        /// Of `data:image/png;base64`, whatever parameters there are in between.
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

    /// As an address; `None` if it is too long for one.
    pub(super) fn address(&self) -> Option<Cow<'_, str>> {
        (self.bytes.len() <= URL_BYTES_MAX).then(|| self.read())?
    }

    /// As it stands in the body.
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

/// Reads a JSON list without keeping more of it than is taken.
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

/// The text in an object that stands for an image.
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
    // One level of {"image_url": {"url": …}} is as deep as any client goes.
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
