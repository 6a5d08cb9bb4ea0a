//! A call that the fake received.

use axum::{
    body::Bytes,
    http::{HeaderMap, Uri, header::CONTENT_TYPE},
};
use serde_json::{Map, Value};

/// A call, parsed.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// The JSON body, or the text parts of a form as strings.
    pub fields: Map<String, Value>,
    /// The files, in the order they arrived.
    pub files: Vec<File>,
    /// The names of a form's parts, in the order they arrived.
    pub parts: Vec<String>,
}

/// A file in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub filename: String,
    pub content_type: String,
    pub bytes: Bytes,
}

impl Received {
    /// Reads a JSON body or a form.
    pub(super) async fn read(uri: &Uri, headers: HeaderMap, body: Bytes) -> Self {
        let mut received = Self {
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            headers,
            fields: Map::new(),
            files: Vec::new(),
            parts: Vec::new(),
        };
        let content_type = received.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        if let Ok(boundary) = multer::parse_boundary(content_type) {
            received.read_form(body, boundary).await;
        } else if let Ok(Value::Object(fields)) = serde_json::from_slice(&body) {
            received.fields = fields;
        }
        received
    }

    async fn read_form(&mut self, body: Bytes, boundary: String) {
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(body)]);
        let mut form = multer::Multipart::new(body, boundary);
        while let Some(part) = form.next_field().await.unwrap() {
            let name = part.name().unwrap_or_default().to_owned();
            self.parts.push(name.clone());
            match part.file_name().map(str::to_owned) {
                None => {
                    self.fields.insert(name, part.text().await.unwrap().into());
                }
                Some(filename) => self.files.push(File {
                    name,
                    filename,
                    content_type: part
                        .content_type()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    bytes: part.bytes().await.unwrap(),
                }),
            }
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `n`, as a number or as a form's text.
    pub fn n(&self) -> Option<u64> {
        match self.fields.get("n") {
            None => Some(1),
            Some(Value::String(text)) => text.parse().ok(),
            Some(other) => other.as_u64(),
        }
    }

    /// `size` in pixels; `auto` is 1024x1024.
    pub fn size(&self) -> Option<(u32, u32)> {
        let size = self.fields.get("size").and_then(Value::as_str);
        if matches!(size, None | Some("auto")) {
            return Some((1024, 1024));
        }
        let (width, height) = size?.split_once('x')?;
        let (width, height) = (width.parse().ok()?, height.parse().ok()?);
        (width % 16 == 0 && height % 16 == 0).then_some((width, height))
    }

    /// The host it was called by.
    pub(super) fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }
}

impl File {
    /// Whether the bytes have the signature of their content type.
    pub(super) fn is_image(&self) -> bool {
        let bytes: &[u8] = &self.bytes;
        match self.content_type.as_str() {
            "image/png" => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
            "image/jpeg" => bytes.starts_with(b"\xff\xd8\xff"),
            "image/webp" => bytes.starts_with(b"RIFF"),
            _ => false,
        }
    }
}
