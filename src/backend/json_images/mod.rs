//! Extracts the images from an upstream's answer while it arrives.
//!
//! The answer is megabytes of base64 in a little JSON. An [`ImageScanner`] decodes the strings at its
//! [`ImagePath`]s (`/data/*/b64_json`) on the fly and keeps the rest, in which each decoded string is
//! replaced by `true`. The rest is short, and a JSON parser reads it at the end.

mod path;
mod position;

use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr2;

use crate::base64::{Decoder, InvalidBase64, LastBits};
use path::Holds;
use position::Position;

pub use path::ImagePath;

/// The most that an answer may contain besides its images.
pub const REST_BYTES_MAX: usize = 1024 * 1024;

const DATA_URL: &[u8] = b"data:";

/// What the scanner found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The next bytes of the current image.
    Piece(Bytes),
    /// The current image is complete.
    End,
}

/// Why an answer cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAnswer {
    /// A string that must be an image is not base64.
    #[error("an image in the answer is not base64")]
    Base64,
    /// The rest is larger than [`REST_BYTES_MAX`].
    #[error("the answer has more than {REST_BYTES_MAX} bytes besides its images")]
    TooLong,
}

/// A state machine over the bytes of one answer.
#[derive(Debug)]
pub struct ImageScanner {
    state: State,
    position: Position,
    /// The start of the current string in `rest`.
    text_start: usize,
    /// The first characters of a string that may be an image.
    prefix: Vec<u8>,
    base64: Decoder,
    /// Whether the current image has yielded a byte yet.
    begun: bool,
    rest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Outside strings.
    #[default]
    Between,
    /// In a string that is kept.
    Text,
    TextEscape,
    /// In a string that is skipped.
    Echo,
    EchoEscape,
    /// In the first characters of a string that may be an image.
    Prefix,
    /// In a data URL, before its comma.
    DataUrlHead,
    /// In an image's base64.
    Image,
    ImageEscape,
    /// After `\u` in an image.
    ImageCodePoint {
        digits: u8,
        value: u32,
    },
    /// After an image, before all of it is returned.
    ImageEnd,
}

impl ImageScanner {
    /// A scanner for images at `paths`, of which at most the first 32 count.
    pub fn new(paths: Arc<[ImagePath]>) -> Self {
        Self {
            state: State::default(),
            position: Position::new(paths),
            text_start: 0,
            prefix: Vec::new(),
            base64: Decoder::default(),
            begun: false,
            rest: Vec::new(),
        }
    }

    /// Scans `input` until it finds something, and advances `input` past the scanned bytes.
    /// `None` means that all of `input` was scanned.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Found>, InvalidAnswer> {
        loop {
            if self.base64.is_full() {
                return Ok(self.take_piece());
            }
            if self.state == State::ImageEnd {
                if let Some(piece) = self.take_piece() {
                    return Ok(Some(piece));
                }
                self.state = State::Between;
                if std::mem::take(&mut self.begun) {
                    self.keep(b"true")?;
                    return Ok(Some(Found::End));
                }
                self.keep(b"\"\"")?;
            }
            let Some(&first) = input.first() else {
                return Ok(None);
            };
            match self.state {
                State::Image => self.image(input)?,
                State::Text => self.text(input)?,
                State::Echo => self.echo(input),
                State::DataUrlHead => self.data_url_head(input)?,
                State::Prefix if self.prefix_ends(first) => self.decide()?,
                _ => {
                    *input = &input[1..];
                    self.step(first)?;
                }
            }
        }
    }

    /// The answer without its images, each of which is replaced by `true`.
    pub fn into_rest(self) -> Vec<u8> {
        self.rest
    }

    fn take_piece(&mut self) -> Option<Found> {
        let piece = self.base64.take()?;
        self.begun = true;
        Some(Found::Piece(piece))
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), InvalidAnswer> {
        if self.rest.len() + bytes.len() > REST_BYTES_MAX {
            return Err(InvalidAnswer::TooLong);
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// Processes one byte in a state without a faster way.
    fn step(&mut self, byte: u8) -> Result<(), InvalidAnswer> {
        match self.state {
            State::TextEscape => {
                self.state = State::Text;
                self.keep(&[byte])
            }
            State::EchoEscape => {
                self.state = State::Echo;
                Ok(())
            }
            State::Prefix => {
                self.prefix.push(byte);
                Ok(())
            }
            State::ImageEscape => self.image_escape(byte),
            State::ImageCodePoint { digits, value } => self.code_point(byte, digits, value),
            _ => self.between(byte),
        }
    }

    fn between(&mut self, byte: u8) -> Result<(), InvalidAnswer> {
        match byte {
            b'"' => match self.position.holds() {
                Some(Holds::Echo) => {
                    self.state = State::Echo;
                    return self.keep(b"true");
                }
                Some(Holds::Base64 | Holds::DataUrls) => {
                    self.prefix.clear();
                    self.state = State::Prefix;
                    return Ok(());
                }
                None => {
                    self.state = State::Text;
                    self.text_start = self.rest.len() + 1;
                }
            },
            b'{' | b'[' => self.position.open(byte),
            b'}' | b']' => self.position.close(),
            b',' => self.position.comma(),
            _ => {}
        }
        self.keep(&[byte])
    }

    fn text(&mut self, input: &mut &[u8]) -> Result<(), InvalidAnswer> {
        let Some(end) = memchr2(b'"', b'\\', input) else {
            self.keep(input)?;
            *input = &[];
            return Ok(());
        };
        let (text, after) = input.split_at(end + 1);
        self.keep(text)?;
        *input = after;
        if text.ends_with(b"\\") {
            self.state = State::TextEscape;
            return Ok(());
        }
        self.state = State::Between;
        if self.position.at_name() {
            let name = &self.rest[self.text_start..self.rest.len() - 1];
            self.position.name(name);
        }
        Ok(())
    }

    fn echo(&mut self, input: &mut &[u8]) {
        let Some(end) = memchr2(b'"', b'\\', input) else {
            *input = &[];
            return;
        };
        self.state = match input[end] {
            b'"' => State::Between,
            _ => State::EchoEscape,
        };
        *input = &input[end + 1..];
    }

    fn prefix_ends(&self, next: u8) -> bool {
        self.prefix.len() == DATA_URL.len() || matches!(next, b'"' | b'\\')
    }

    /// Decides what the string is: enough of it is known.
    fn decide(&mut self) -> Result<(), InvalidAnswer> {
        let prefix = std::mem::take(&mut self.prefix);
        if prefix == DATA_URL {
            self.state = State::DataUrlHead;
            Ok(())
        } else if self.position.holds() == Some(Holds::DataUrls) {
            self.state = State::Text;
            self.keep(b"\"")?;
            self.keep(&prefix)
        } else {
            self.state = State::Image;
            Ok(self.base64.feed(&prefix)?)
        }
    }

    fn data_url_head(&mut self, input: &mut &[u8]) -> Result<(), InvalidAnswer> {
        match memchr2(b',', b'"', input) {
            None => *input = &[],
            Some(end) if input[end] == b',' => {
                *input = &input[end + 1..];
                self.state = State::Image;
            }
            Some(_) => return Err(InvalidAnswer::Base64),
        }
        Ok(())
    }

    fn image(&mut self, input: &mut &[u8]) -> Result<(), InvalidAnswer> {
        let window = &input[..input.len().min(self.base64.capacity_chars())];
        let end = memchr2(b'"', b'\\', window);
        let run = end.unwrap_or(window.len());
        self.base64.feed(&window[..run])?;
        *input = &input[run + usize::from(end.is_some())..];
        match end.map(|end| window[end]) {
            Some(b'"') => {
                self.base64.end(LastBits::Any)?;
                self.state = State::ImageEnd;
            }
            Some(_) => self.state = State::ImageEscape,
            None => {}
        }
        Ok(())
    }

    fn image_escape(&mut self, byte: u8) -> Result<(), InvalidAnswer> {
        self.state = State::Image;
        match byte {
            b'n' | b'r' | b't' => Ok(()),
            b'/' => Ok(self.base64.feed(b"/")?),
            b'u' => {
                self.state = State::ImageCodePoint {
                    digits: 0,
                    value: 0,
                };
                Ok(())
            }
            _ => Err(InvalidAnswer::Base64),
        }
    }

    fn code_point(&mut self, byte: u8, digits: u8, value: u32) -> Result<(), InvalidAnswer> {
        let digit = char::from(byte).to_digit(16).ok_or(InvalidAnswer::Base64)?;
        let value = value * 16 + digit;
        if digits < 3 {
            self.state = State::ImageCodePoint {
                digits: digits + 1,
                value,
            };
            return Ok(());
        }
        self.state = State::Image;
        let character = u8::try_from(value).or(Err(InvalidAnswer::Base64))?;
        Ok(self.base64.feed(&[character])?)
    }
}

impl From<InvalidBase64> for InvalidAnswer {
    fn from(_: InvalidBase64) -> Self {
        Self::Base64
    }
}

#[cfg(test)]
mod tests;
