//! A call to the stand-in, and whether the real thing would take it.

use axum::{
    body::Bytes,
    http::{HeaderMap, Uri, header::CONTENT_TYPE},
};
use serde_json::{Map, Value};

use super::{KEY, REFUSED_PROMPT, Reply};

const PARAMETERS: [&str; 14] = [
    "background",
    "image",
    "image[]",
    "input_fidelity",
    "mask",
    "model",
    "moderation",
    "n",
    "output_compression",
    "output_format",
    "prompt",
    "quality",
    "size",
    "user",
];
const FILES: [&str; 3] = ["image", "image[]", "mask"];

#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
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

    pub(super) fn check_key(&self) -> Result<(), Reply> {
        if self.header("authorization") == Some(&format!("Bearer {KEY}")) {
            return Ok(());
        }
        Err(Reply::error(
            401,
            "invalid_api_key",
            "Incorrect API key provided.",
        ))
    }

    pub(super) fn check(&self) -> Result<(), Reply> {
        self.check_key()?;
        let invalid = |param: &str, message: &str| {
            Err(Reply::error(400, "invalid_value", message).about(param))
        };
        let files = self.files.iter().map(|file| file.name.as_str());
        let mut names = self.fields.keys().map(String::as_str).chain(files);
        if let Some(unknown) = names.find(|name| !PARAMETERS.contains(name)) {
            let message = format!("Unknown parameter: '{unknown}'.");
            return Err(Reply::error(400, "unknown_parameter", &message).about(unknown));
        }
        let prompt = self.fields.get("prompt").and_then(Value::as_str);
        match prompt {
            None | Some("") => return invalid("prompt", "Missing required parameter: 'prompt'."),
            Some(REFUSED_PROMPT) => {
                let message = "Your request was rejected by the safety system.";
                return Err(Reply::error(400, "moderation_blocked", message));
            }
            Some(_) => {}
        }
        if !matches!(self.n(), Some(1..=10)) {
            return invalid("n", "Invalid 'n': expected an integer from 1 to 10.");
        }
        if self.size().is_none() {
            return invalid("size", "Invalid size: both sides must be divisible by 16.");
        }
        let images = self.files.iter().filter(|file| file.name != "mask").count();
        if self.path.ends_with("edits") && !(1..=16).contains(&images) {
            return invalid("image", "Expected 1 to 16 images.");
        }
        let bad = |file: &File| !FILES.contains(&file.name.as_str()) || !file.is_image();
        match self.files.iter().find(|file| bad(file)) {
            Some(file) => invalid(&file.name, "Invalid image file or mode."),
            None => Ok(()),
        }
    }
}

impl File {
    fn is_image(&self) -> bool {
        let bytes: &[u8] = &self.bytes;
        match self.content_type.as_str() {
            "image/png" => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
            "image/jpeg" => bytes.starts_with(b"\xff\xd8\xff"),
            "image/webp" => bytes.starts_with(b"RIFF"),
            _ => false,
        }
    }
}
