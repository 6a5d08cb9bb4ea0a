//! Builds the request: the JSON of a generation, or the multipart form of an edit.
//!
//! It contains only fields that the API knows, because strict upstreams reject unknown fields.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{RequestBuilder, header::ACCEPT, multipart::Form};
use serde_json::{Map, Value, json};

use super::{BackendError, GenerateRequest, Openai, profile::References};
use crate::{
    backend::upstream::{
        inputs::{Encoding, JsonBody, ReadFault, file},
        prompt,
    },
    image::{ImageSize, Quality},
};

/// Never forwarded, whatever the settings say: the gateway sets these fields itself or must not send them.
const RESERVED: [&str; 15] = [
    "file",
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

impl Openai {
    /// Builds the HTTP request.
    pub(super) fn request(
        &self,
        request: &GenerateRequest,
        fault: &ReadFault,
    ) -> Result<RequestBuilder, BackendError> {
        let mut fields = self.fields(request);
        let as_form = !request.references.is_empty() && self.profile.references == References::Edit;
        let operation = if as_form { "edits" } else { "generations" };
        let path = if self.in_deployments {
            let model = utf8_percent_encode(&request.model, NON_ALPHANUMERIC);
            format!("openai/deployments/{model}/images/{operation}")
        } else {
            format!("images/{operation}")
        };
        let builder = self.endpoint.post(&path).header(ACCEPT, "application/json");
        if as_form {
            return Ok(builder.multipart(form(request, fields, fault)?));
        }
        let mut body = JsonBody::new(fault);
        if let Some(reference) = request.references.first() {
            let reference = body.input(reference, Encoding::Base64);
            fields.insert("file".to_owned(), reference);
        }
        Ok(body.on(builder, &Value::Object(fields)))
    }

    /// The client's parameters that are forwarded.
    pub(super) fn forwards(&self) -> impl Iterator<Item = &str> {
        let names = self.forward.iter().map(String::as_str);
        names.filter(|name| !RESERVED.contains(name))
    }

    fn fields(&self, request: &GenerateRequest) -> Map<String, Value> {
        let size = self.size(request);
        let quality = request.quality.map(|quality| match quality {
            Quality::Low => "low",
            Quality::Medium => "medium",
            Quality::High => "high",
        });
        let prompt = prompt::without(&request.prompt, self.profile.prompt);
        let own = [
            // An Azure deployment has a fixed model, and some reject the field.
            (
                "model",
                (!self.in_deployments).then(|| json!(request.model)),
            ),
            ("prompt", Some(json!(prompt))),
            ("n", Some(json!(request.n))),
            (
                "size",
                Some(json!(format!("{}x{}", size.width, size.height))),
            ),
            ("quality", quality.map(Value::from)),
            (
                "response_format",
                self.profile.response_format.map(Value::from),
            ),
        ];
        let options = self.forwards().filter_map(|name| {
            let value = request.options.get(name)?;
            (!value.is_null()).then(|| (name.to_owned(), value.clone()))
        });
        own.into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .chain(options)
            .chain(request.extra.clone())
            .collect()
    }

    /// The requested size, or the nearest one that the model can generate.
    fn size(&self, request: &GenerateRequest) -> ImageSize {
        let wanted = self.native.fit(request.size);
        if generates_three_sizes(&request.model) {
            nearest_of_three(wanted)
        } else {
            wanted
        }
    }
}

/// gpt-image-1.5, gpt-image-1-mini and `ChatGPT`'s versions of them generate only three sizes.
fn generates_three_sizes(model: &str) -> bool {
    model.contains("gpt-image-1") || model.contains("chatgpt-image")
}

fn nearest_of_three(wanted: ImageSize) -> ImageSize {
    let [width, height] = [wanted.width, wanted.height].map(u64::from);
    // 3:2 is nearer than 1:1 from the geometric mean of the two on.
    let oblong = |long: u64, across: u64| 2 * long * long > 3 * across * across;
    let (width, height) = if oblong(width, height) {
        (1536, 1024)
    } else if oblong(height, width) {
        (1024, 1536)
    } else {
        (1024, 1024)
    };
    ImageSize { width, height }
}

/// Builds a form: text fields first, then the files, which are read only while they are sent.
fn form(
    request: &GenerateRequest,
    fields: Map<String, Value>,
    fault: &ReadFault,
) -> Result<Form, BackendError> {
    let mut form = Form::new();
    for (name, value) in fields {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        form = form.text(name, text);
    }
    let name = match request.references.len() {
        1 => "image",
        _ => "image[]",
    };
    for (index, input) in request.references.iter().enumerate() {
        let part = file(input, &format!("image-{}", index + 1), fault)?;
        form = form.part(name, part);
    }
    if let Some(mask) = &request.mask {
        form = form.part("mask", file(mask, "mask", fault)?);
    }
    Ok(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_becomes_the_nearest_of_the_three() {
        let nearest = |width, height| {
            let size = nearest_of_three(ImageSize { width, height });
            (size.width, size.height)
        };
        for (width, height) in [(1024, 1024), (2048, 2048), (1200, 1000), (1000, 1200)] {
            assert_eq!(nearest(width, height), (1024, 1024));
        }
        for (width, height) in [(1280, 1024), (1536, 1024), (2048, 1152), (2016, 864)] {
            assert_eq!(nearest(width, height), (1536, 1024));
            assert_eq!(nearest(height, width), (1024, 1536));
        }
        for model in [
            "gpt-image-1.5",
            "openai/gpt-image-1-mini",
            "chatgpt-image-latest",
        ] {
            assert!(generates_three_sizes(model), "{model}");
        }
        for model in ["gpt-image-2", "gpt-image-2.5-flare", "sd-cpp-local"] {
            assert!(!generates_three_sizes(model), "{model}");
        }
    }
}
