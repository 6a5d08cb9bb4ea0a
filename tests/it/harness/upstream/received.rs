//! A call to the fake.

use axum::{
    body::Bytes,
    http::{HeaderMap, Uri, header::CONTENT_TYPE},
};
use serde_json::{Map, Value};

#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// A JSON body as it is; the text parts of a form, as strings.
    pub fields: Map<String, Value>,
    /// In the order they came in.
    pub files: Vec<File>,
    /// The names of a form's parts, in the order they came in.
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

    /// A number, or a number's text as a form has it.
    pub fn n(&self) -> Option<u64> {
        match self.fields.get("n") {
            None => Some(1),
            Some(Value::String(text)) => text.parse().ok(),
            Some(other) => other.as_u64(),
        }
    }

    /// In pixels; `auto` is 1024x1024.
    pub fn size(&self) -> Option<(u32, u32)> {
        let size = self.fields.get("size").and_then(Value::as_str);
        if matches!(size, None | Some("auto")) {
            return Some((1024, 1024));
        }
        let (width, height) = size?.split_once('x')?;
        let (width, height) = (width.parse().ok()?, height.parse().ok()?);
        (width % 16 == 0 && height % 16 == 0).then_some((width, height))
    }

    /// Where it was called.
    pub(super) fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }
}

impl File {
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
