//! OpenAI's shapes: what a call asks for, and the replies.

use serde_json::{Value, json};

use super::image;
use crate::harness::fake_server::{Call, Reply};

impl Call {
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
}

impl Reply {
    /// The images that were asked for.
    pub fn result(call: &Call) -> Self {
        let (width, height) = call.size().unwrap_or((16, 16));
        let count = call.n().and_then(|n| u8::try_from(n).ok()).unwrap_or(1);
        let images: Vec<_> = (0..count).map(|i| image(width, height, i)).collect();
        Self::images(&images)
    }

    /// One small image, regardless of the request.
    pub fn an_image() -> Self {
        Self::images(&[image(3, 2, 0)])
    }

    /// Images as base64, as OpenAI answers them.
    pub fn images(images: &[Vec<u8>]) -> Self {
        let data: Vec<Value> = images
            .iter()
            .map(|image| json!({"b64_json": base64_simd::STANDARD.encode_to_string(image)}))
            .collect();
        let usage = json!({"input_tokens": 8, "output_tokens": 272, "total_tokens": 280,
            "input_tokens_details": {"text_tokens": 8, "image_tokens": 0}});
        Self::json(
            200,
            &json!({"created": 1_781_599_773, "data": data, "background": "opaque",
                "output_format": "png", "quality": "medium", "usage": usage}),
        )
    }

    /// Images as links.
    pub fn links(urls: &[&str]) -> Self {
        let data: Vec<Value> = urls.iter().map(|url| json!({"url": url})).collect();
        Self::json(200, &json!({"created": 1_781_599_773, "data": data}))
    }

    /// An error in OpenAI's shape.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::error_about(None, status, code, message)
    }

    /// An error in OpenAI's shape that names a parameter.
    pub(super) fn error_about(param: Option<&str>, status: u16, code: &str, message: &str) -> Self {
        let kind = match (status, code) {
            (_, "moderation_blocked") => "image_generation_user_error",
            (500.., _) => "server_error",
            _ => "invalid_request_error",
        };
        Self::json(
            status,
            &json!({"error": {"message": message, "type": kind, "param": param, "code": code}}),
        )
    }
}
