//! What is sent: the JSON of a generation, the multipart form of an edit.
//!
//! Only fields that the API knows: strict upstreams refuse a request for one field too many.

use reqwest::multipart::Form;
use serde_json::{Map, Value, json};

use super::{BackendError, Drawing};
use crate::{
    backend::upstream::inputs::{ReadFault, file},
    image::Quality,
};

/// Never forwarded, whatever the settings say: set here, or not to be sent at all.
const RESERVED: [&str; 14] = [
    "image",
    "image_input",
    "image_urls",
    "images",
    "mask",
    "model",
    "n",
    "partial_images",
    "prompt",
    "quality",
    "resolution",
    "response_format",
    "size",
    "stream",
];

/// The JSON body of a generation.
pub(super) fn generation(drawing: &Drawing, forward: &[String]) -> Map<String, Value> {
    fields(drawing, forward)
}

/// The form of an edit: text first, then the files, which are read only as they are sent.
pub(super) fn edit(
    drawing: &Drawing,
    forward: &[String],
    fault: &ReadFault,
) -> Result<Form, BackendError> {
    let mut form = Form::new();
    for (name, value) in fields(drawing, forward) {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        form = form.text(name, text);
    }
    let name = match drawing.references.len() {
        1 => "image",
        _ => "image[]",
    };
    for (index, input) in drawing.references.iter().enumerate() {
        let part = file(input, &format!("image-{}", index + 1), fault)?;
        form = form.part(name, part);
    }
    if let Some(mask) = &drawing.mask {
        form = form.part("mask", file(mask, "mask", fault)?);
    }
    Ok(form)
}

fn fields(drawing: &Drawing, forward: &[String]) -> Map<String, Value> {
    let size = format!("{}x{}", drawing.size.width, drawing.size.height);
    let own = [
        ("model", json!(drawing.model)),
        ("prompt", json!(drawing.prompt)),
        ("n", json!(drawing.n)),
        ("size", json!(size)),
    ];
    let quality = drawing.quality.map(|quality| match quality {
        Quality::Low => "low",
        Quality::Medium => "medium",
        Quality::High => "high",
    });
    let options = forward.iter().filter_map(|name| {
        let value = drawing.options.get(name)?;
        let sent = !value.is_null() && !RESERVED.contains(&name.as_str());
        sent.then(|| (name.clone(), value.clone()))
    });
    own.into_iter()
        .chain(quality.map(|quality| ("quality", json!(quality))))
        .map(|(name, value)| (name.to_owned(), value))
        .chain(options)
        .chain(drawing.extra.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageSize, Resolution};

    #[test]
    fn only_known_and_named_fields_are_sent() {
        let options = json!({"background": "opaque", "user": "u", "moderation": null,
            "response_format": "url", "resolution": "2k", "image_urls": [], "model": "other"});
        let drawing = Drawing {
            model: "gpt-image-2".into(),
            prompt: "a cat".into(),
            n: 2,
            ratio: "1:1".parse().unwrap(),
            resolution: Resolution::OneK,
            size: ImageSize {
                width: 1536,
                height: 864,
            },
            quality: Some(Quality::High),
            references: vec![],
            mask: None,
            options: options.as_object().unwrap().clone(),
            extra: serde_json::Map::new(),
            job: None,
        };
        let forward = [
            "background",
            "moderation",
            "response_format",
            "resolution",
            "image_urls",
            "model",
        ];
        let body = generation(&drawing, &forward.map(str::to_owned));
        let expected = json!({"model": "gpt-image-2", "prompt": "a cat", "n": 2, "size": "1536x864",
            "quality": "high", "background": "opaque"});
        assert_eq!(Value::Object(body), expected);
    }
}
