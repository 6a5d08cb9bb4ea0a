//! A call to the fake, validated as the real API does.

use serde_json::{Map, Value};

const BYTES_MAX: usize = 7 * 1024 * 1024;
const IMAGES_MAX: usize = 14;

/// The ratios that it knows, with the pixels at 1K.
const RATIOS: [(&str, u32, u32); 10] = [
    ("1:1", 1024, 1024),
    ("2:3", 848, 1264),
    ("3:2", 1264, 848),
    ("3:4", 896, 1200),
    ("4:3", 1200, 896),
    ("4:5", 928, 1152),
    ("5:4", 1152, 928),
    ("9:16", 768, 1376),
    ("16:9", 1376, 768),
    ("21:9", 1584, 672),
];

/// A validated request.
#[derive(Debug)]
pub struct Request {
    pub prompt: String,
    /// The images, in order.
    pub images: Vec<Vec<u8>>,
    /// In pixels.
    pub size: (u32, u32),
}

impl Request {
    /// `call` is as in `gemini-3-pro-image:generateContent`. Errors are those of the real API.
    pub fn read(call: &str, body: &Value) -> Result<Self, String> {
        let Some(model) = call.strip_suffix(":generateContent") else {
            return Err(format!("{call} is not found"));
        };
        let body = &camel_case(body);
        known(body, "", &["contents", "generationConfig"])?;
        let mut request = Self {
            prompt: String::new(),
            images: Vec::new(),
            size: size(model, &body["generationConfig"])?,
        };
        for content in array(&body["contents"], "contents")? {
            known(content, "contents", &["role", "parts"])?;
            if content["role"] != "user" {
                return Err("Please use a valid role: user, model.".to_owned());
            }
            for part in array(&content["parts"], "parts")? {
                request.part(part)?;
            }
        }
        if request.images.len() > IMAGES_MAX {
            return Err(format!("The maximum number of images is {IMAGES_MAX}."));
        }
        if request.prompt.is_empty() {
            return Err("contents must not be empty".to_owned());
        }
        Ok(request)
    }

    fn part(&mut self, part: &Value) -> Result<(), String> {
        known(part, "parts", &["text", "inlineData"])?;
        if let Some(text) = part["text"].as_str() {
            self.prompt.push_str(text);
            return Ok(());
        }
        let inline = &part["inlineData"];
        known(inline, "inline_data", &["mimeType", "data"])?;
        let data = inline["data"].as_str().unwrap_or_default();
        // The SDK sends URL-safe base64, everybody else the standard alphabet.
        let bytes = base64_simd::STANDARD
            .decode_to_vec(data)
            .or_else(|_| base64_simd::URL_SAFE.decode_to_vec(data))
            .or(Err(
                "Invalid value at 'data': Base64 decoding failed".to_owned()
            ))?;
        let starts: &[u8] = match inline["mimeType"].as_str() {
            Some("image/png") => b"\x89PNG\r\n\x1a\n",
            Some("image/jpeg") => b"\xff\xd8\xff",
            Some("image/webp") => b"RIFF",
            other => return Err(format!("Unsupported MIME type: {other:?}")),
        };
        if !bytes.starts_with(starts) || bytes.len() > BYTES_MAX {
            return Err("Unable to process input image.".to_owned());
        }
        self.images.push(bytes);
        Ok(())
    }
}

fn size(model: &str, config: &Value) -> Result<(u32, u32), String> {
    known(
        config,
        "generation_config",
        &["responseModalities", "imageConfig", "candidateCount"],
    )?;
    for modality in array(&config["responseModalities"], "response_modalities")? {
        if !matches!(modality.as_str(), Some("TEXT" | "IMAGE")) {
            return Err(format!(
                "Invalid value at 'response_modalities': {modality}"
            ));
        }
    }
    if !matches!(config["candidateCount"].as_u64(), None | Some(1)) {
        return Err("Multiple candidates is not enabled for this model".to_owned());
    }
    let image = &config["imageConfig"];
    known(image, "image_config", &["aspectRatio", "imageSize"])?;
    let ratio = image["aspectRatio"].as_str().unwrap_or("1:1");
    let found = RATIOS.iter().find(|(known, ..)| *known == ratio);
    let &(_, width, height) = found.ok_or(format!("aspect_ratio {ratio} is not supported"))?;
    let by = match image["imageSize"].as_str() {
        Some(_) if model.starts_with("gemini-2.5") => {
            return Err("image_size is not supported by this model".to_owned());
        }
        None | Some("1K") => 1,
        Some("2K") => 2,
        Some(other) => return Err(format!("image_size {other} is not supported")),
    };
    Ok((width * by, height * by))
}

/// Converts field names to the documented ones: the SDK's `mime_type` becomes `mimeType`.
fn camel_case(value: &Value) -> Value {
    let rename = |name: &str| {
        let mut words = name.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        words.fold(first, |name, word| {
            let (head, tail) = word.split_at(word.len().min(1));
            name + &head.to_uppercase() + tail
        })
    };
    match value {
        Value::Array(items) => items.iter().map(camel_case).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (rename(name), camel_case(value)))
            .collect(),
        other => other.clone(),
    }
}

/// Every field must be in this list.
fn known(value: &Value, at: &str, fields: &[&str]) -> Result<(), String> {
    let none = Map::new();
    let object = value.as_object().unwrap_or(&none);
    match object.keys().find(|name| !fields.contains(&name.as_str())) {
        Some(name) => Err(format!(
            "Invalid JSON payload received. Unknown name \"{name}\" at '{at}': Cannot find field."
        )),
        None => Ok(()),
    }
}

fn array<'a>(value: &'a Value, at: &str) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or(format!("{at} is not specified"))
}
