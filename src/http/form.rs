//! Multipart forms, read part by part as they arrive. Memory is bounded whatever a client sends: it holds one
//! piece and one part's head at a time, and the head and the text before the first part have limits.

use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use memchr::memmem;

use super::error::ApiError;

/// Maximum size of a part's head, from its boundary to the empty line.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Maximum length of a boundary (RFC 2046).
const BOUNDARY_BYTES_MAX: usize = 70;

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send>>;

/// A reader of one form.
pub(super) struct Form {
    pieces: Pieces,
    /// Received bytes that were not returned yet.
    buffer: BytesMut,
    /// The end of a part: a boundary with the line break before it.
    delimiter: Vec<u8>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In a part, or before the first part.
    Data,
    /// The buffer starts with the delimiter.
    Delimiter,
    /// The last boundary was read.
    Ended,
}

/// A part's head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// The field name; empty if there is none.
    pub name: String,
    /// The file name, decoded.
    pub file_name: Option<String>,
    /// Whether the part has a `Content-Type`.
    pub is_typed: bool,
}

impl Form {
    /// Reads the boundary from the content type; 400 if it has none.
    pub(super) fn new(
        content_type: &str,
        pieces: impl Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
    ) -> Result<Self, ApiError> {
        let boundary = boundary(content_type).ok_or_else(|| malformed("it has no boundary"))?;
        Ok(Self {
            pieces: Box::pin(pieces),
            // The first boundary may start the body, without a line break before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            stage: Stage::Data,
        })
    }

    /// The head of the next part; skips unread content of the previous part. 400 if the form is malformed.
    pub(super) async fn next_part(&mut self) -> Result<Option<Part>, ApiError> {
        while self.stage == Stage::Data {
            self.chunk().await?;
        }
        if self.stage == Stage::Ended {
            return Ok(None);
        }
        self.buffer.advance(self.delimiter.len());
        self.stage = Stage::Data;
        let mut searched = 0;
        loop {
            if self.buffer.starts_with(b"--") {
                self.stage = Stage::Ended;
                return Ok(None);
            }
            let end = memmem::find(&self.buffer[searched..], b"\r\n\r\n");
            if let Some(end) = end.map(|end| searched + end) {
                if end > HEAD_BYTES_MAX {
                    return Err(long_head());
                }
                let head = self.buffer.split_to(end);
                self.buffer.advance(b"\r\n\r\n".len());
                return Part::parse(&head).map(Some);
            }
            if self.buffer.len() > HEAD_BYTES_MAX + 3 {
                return Err(long_head());
            }
            searched = self.buffer.len().saturating_sub(3);
            self.fill().await?;
        }
    }

    /// The next piece of the part's content; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        while self.stage == Stage::Data {
            let whole = memmem::find(&self.buffer, &self.delimiter);
            if whole == Some(0) {
                self.stage = Stage::Delimiter;
                break;
            }
            // The buffer may end within a boundary.
            let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            let content = whole.unwrap_or(safe);
            if content > 0 {
                return Ok(Some(self.buffer.split_to(content).freeze()));
            }
            self.fill().await?;
        }
        Ok(None)
    }

    /// The part's content as a stream.
    pub(super) fn content(
        &mut self,
    ) -> Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send + '_>> {
        Box::pin(stream::unfold(self, async |form| {
            Some((form.chunk().await.transpose()?, form))
        }))
    }

    async fn fill(&mut self) -> Result<(), ApiError> {
        match self.pieces.next().await {
            Some(piece) => {
                self.buffer.extend_from_slice(&piece?);
                Ok(())
            }
            None => Err(malformed("it ends before its last boundary")),
        }
    }
}

impl Part {
    /// Parses the text between a boundary and the empty line.
    fn parse(head: &[u8]) -> Result<Self, ApiError> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.split("\r\n");
        let after_boundary = lines.next().unwrap_or_default();
        if !after_boundary.trim_matches([' ', '\t']).is_empty() {
            return Err(malformed("a boundary must stand on a line of its own"));
        }
        let mut part = Self::default();
        for line in lines {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| malformed("a part's head has a line without a colon"))?;
            if name.eq_ignore_ascii_case("content-type") {
                part.is_typed = true;
            } else if name.eq_ignore_ascii_case("content-disposition") {
                part.take_disposition(value);
            }
        }
        Ok(part)
    }

    fn take_disposition(&mut self, value: &str) {
        let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = parameter(after.trim_start());
            match name.trim().to_ascii_lowercase().as_str() {
                "name" => self.name = value,
                "filename" => drop(self.file_name.get_or_insert(value)),
                // Preferred over `filename`, before or after it, since it can encode every character.
                "filename*" => self.file_name = Some(extended(&value).unwrap_or(value)),
                _ => {}
            }
            rest = after.split_once(';').map_or("", |(_, rest)| rest);
        }
    }
}

/// A parameter's value, and the text after it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &quoted[at + 1..]),
            // Browsers do not escape backslashes; other clients escape a quotation mark with one.
            '\\' if quoted[at + 1..].starts_with('"') => {
                value.push('"');
                chars.next();
            }
            char => value.push(char),
        }
    }
    (value, "")
}

/// Decodes an RFC 8187 value such as `UTF-8''a%20b.png`.
fn extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8();
    let is_utf8 = charset.eq_ignore_ascii_case("utf-8");
    is_utf8.then(|| decoded.ok().map(String::from))?
}

/// The boundary in `multipart/form-data; boundary="…"`.
fn boundary(content_type: &str) -> Option<String> {
    let (_, mut rest) = content_type.split_once(';')?;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = parameter(after.trim_start());
        if name.trim().eq_ignore_ascii_case("boundary") {
            let fits = (1..=BOUNDARY_BYTES_MAX).contains(&value.len());
            return fits.then_some(value);
        }
        rest = after.split_once(';')?.1;
    }
    None
}

fn malformed(why: &str) -> ApiError {
    ApiError::bad_request(format!("malformed multipart body: {why}"))
}

fn long_head() -> ApiError {
    malformed(&format!(
        "the head of a part exceeds maximum {HEAD_BYTES_MAX} bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=xyz";

    /// Every part with its content, from a body that arrives in pieces of `piece` bytes.
    async fn read(body: &str, piece: usize) -> Result<Vec<(Part, String)>, String> {
        let pieces: Vec<_> = body
            .as_bytes()
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let mut form = Form::new(TYPE, stream::iter(pieces)).map_err(|e| e.to_string())?;
        let mut parts = Vec::new();
        while let Some(part) = form.next_part().await.map_err(|e| e.to_string())? {
            let mut content = Vec::new();
            while let Some(piece) = form.chunk().await.map_err(|e| e.to_string())? {
                content.extend_from_slice(&piece);
            }
            parts.push((part, String::from_utf8(content).unwrap()));
        }
        Ok(parts)
    }

    fn part(name: &str, file_name: Option<&str>, is_typed: bool) -> Part {
        Part {
            name: name.to_owned(),
            file_name: file_name.map(str::to_owned),
            is_typed,
        }
    }

    #[tokio::test]
    async fn parts_do_not_depend_on_piece_length() {
        let body = "before\r\n--xyz \t\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\n--xy\r\n\
                    \r\n--xyz\r\ncontent-type: image/png\r\ncontent-disposition: form-data; filename=\"b \\\"c\\\".png\"; \
                    name=image[]\r\n\r\n\r\n--xyz\r\n\r\n\r\n--xyz\r\nX: y\r\n\r\nno name\r\n--xyz--after";
        for piece in [1, 2, 3, 5, 7, 64, 10_000] {
            let parts = read(body, piece).await.unwrap();
            let expected = [
                (part("a", None, false), "one\r\n--xy\r\n".to_owned()),
                (part("image[]", Some("b \"c\".png"), true), String::new()),
                (part("", None, false), String::new()),
                (part("", None, false), "no name".to_owned()),
            ];
            assert_eq!(parts, expected, "pieces of {piece}");
        }
        assert_eq!(read("--xyz--", 3).await.unwrap(), []);
    }

    #[tokio::test]
    async fn unread_content_is_skipped() {
        let body = "--xyz\r\n\r\nmuch\r\n--xyz\r\ncontent-disposition: form-data; name=n\r\n\r\n2\r\n--xyz--";
        let pieces = body.as_bytes().chunks(4).map(Bytes::copy_from_slice);
        let mut form = Form::new(TYPE, stream::iter(pieces.map(Ok).collect::<Vec<_>>())).unwrap();
        assert_eq!(form.next_part().await.unwrap().unwrap().name, "");
        assert_eq!(form.next_part().await.unwrap().unwrap().name, "n");
        assert!(form.next_part().await.unwrap().is_none());
        assert!(form.next_part().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn malformed_forms_are_refused() {
        let long = "x".repeat(HEAD_BYTES_MAX + 4);
        let ends = "malformed multipart body: it ends before its last boundary";
        let head = "malformed multipart body: the head of a part exceeds maximum 16384 bytes";
        for (body, message) in [
            (String::new(), ends),
            ("--xyz".to_owned(), ends),
            ("--xyz\r\n\r\nhalf".to_owned(), ends),
            ("--abc\r\n\r\n--abc--".to_owned(), ends),
            (format!("--xyz\r\nx: {long}"), head),
            (format!("--xyz\r\nx: {long}\r\n\r\n\r\n--xyz--"), head),
            (format!("--xyz{}", " ".repeat(HEAD_BYTES_MAX + 4)), head),
            (
                "--xyzw\r\n\r\n\r\n--xyz--".to_owned(),
                "malformed multipart body: a boundary must stand on a line of its own",
            ),
            (
                "--xyz\r\nno colon\r\n\r\n\r\n--xyz--".to_owned(),
                "malformed multipart body: a part's head has a line without a colon",
            ),
        ] {
            for piece in [1, 100_000] {
                assert_eq!(read(&body, piece).await.unwrap_err(), message, "{body:.40}");
            }
        }
    }

    #[test]
    fn boundaries_and_names_are_parsed_in_every_spelling() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=a-b", Some("a-b")),
            (
                "Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"",
                Some("a b"),
            ),
            ("multipart/form-data;boundary=a; x=y", Some("a")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
        ] {
            assert_eq!(
                boundary(content_type).as_deref(),
                expected,
                "{content_type}"
            );
        }
        for (disposition, name, file_name) in [
            (
                "form-data; name=\"a\"; filename=\"C:\\x\\y.png\"",
                "a",
                Some("C:\\x\\y.png"),
            ),
            ("form-data; name=a; filename=b.png", "a", Some("b.png")),
            (
                "form-data; filename=\"a;b=c.png\"; name=\"d\"",
                "d",
                Some("a;b=c.png"),
            ),
            (
                "form-data; name=\"a\"; filename=\"x.png\"; filename*=UTF-8''%E7%8C%AB.png",
                "a",
                Some("猫.png"),
            ),
            (
                "form-data; name=\"a\"; filename*=UTF-8''%E7%8C%AB.png; filename=\"x.png\"",
                "a",
                Some("猫.png"),
            ),
            ("form-data; name=\"猫\"", "猫", None),
            ("form-data", "", None),
            ("form-data; name=\"open", "open", None),
        ] {
            let mut part = Part::default();
            part.take_disposition(disposition);
            assert_eq!(part.name, name, "{disposition}");
            assert_eq!(part.file_name.as_deref(), file_name, "{disposition}");
        }
    }
}
