//! Builds the request: the prompt and the references as parts of one turn, and the image's settings.

use serde_json::{Value, json};

use super::{BackendError, GenerateRequest};
use crate::{
    backend::{
        Input,
        upstream::{
            extra::deep_merge,
            inputs::{Encoding, JsonBody},
        },
    },
    image::{AspectRatio, Format, Resolution},
};

/// The largest image inside a request.
const INLINE_BYTES_MAX: u64 = 7 * 1024 * 1024;

/// Builds the body of a request. `sizes` are the size names that the model knows.
pub(super) fn content(
    request: &GenerateRequest,
    sizes: &[String],
    body: &mut JsonBody<'_>,
) -> Result<Value, BackendError> {
    let mut parts = vec![json!({"text": request.prompt})];
    for (index, input) in request.references.iter().enumerate() {
        check(input).map_err(|fault| BackendError::Invalid {
            message: format!("reference image {} {fault}", index + 1),
        })?;
        let data = body.input(input, Encoding::Base64);
        parts.push(json!({"inlineData": {"mimeType": input.format.content_type(), "data": data}}));
    }
    let mut image = json!({"aspectRatio": ratio(request.ratio)});
    let size = match request.resolution {
        Resolution::OneK => "1K",
        Resolution::TwoK => "2K",
    };
    if sizes.iter().any(|known| known == size) {
        image["imageSize"] = size.into();
    }
    let mut content = json!({
        "contents": [{"role": "user", "parts": parts}],
        "generationConfig": {"responseModalities": ["IMAGE"], "imageConfig": image},
    });
    deep_merge(&mut content, &request.extra);
    Ok(content)
}

/// Checks an image. The error says why the upstream would not accept it.
fn check(input: &Input) -> Result<(), String> {
    if input.length > INLINE_BYTES_MAX {
        return Err(format!(
            "has {} bytes; this model takes {INLINE_BYTES_MAX} at most",
            input.length
        ));
    }
    if input.format == Format::Gif {
        return Err("is a GIF; this model takes PNG, JPEG and WebP".to_owned());
    }
    Ok(())
}

/// The nearest ratio that the upstream knows.
fn ratio(wanted: AspectRatio) -> String {
    let wanted = wanted.to_string();
    match wanted.as_str() {
        "2:1" => "16:9".to_owned(),
        "1:2" | "9:21" => "9:16".to_owned(),
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_ratios_become_the_nearest_supported_ones() {
        let known = [
            "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9",
        ];
        for wanted in AspectRatio::all() {
            let sent = ratio(wanted);
            assert!(known.contains(&sent.as_str()), "{wanted}: {sent}");
            let is_known = known.contains(&wanted.to_string().as_str());
            assert!(!is_known || sent == wanted.to_string(), "{wanted}: {sent}");
        }
        assert_eq!(ratio("9:21".parse().unwrap()), "9:16");
    }
}
