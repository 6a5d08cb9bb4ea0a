//! What is sent: a picture from words, or from a picture and words.

use std::sync::Arc;

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::{BackendError, Drawing, Sdapi, Upscale, mask};
use crate::{
    backend::upstream::{
        inputs::{Encoding, JsonBody, ReadFault},
        prompt,
    },
    image::ImageSize,
};

/// How much of a picture is drawn anew while it is made larger: less leaves it blurred, more makes
/// another one of it.
const UPSCALE_STRENGTH: f64 = 0.6;
/// Cuts a reference of other proportions instead of bending it.
const CROP_AND_RESIZE: u8 = 1;

impl Sdapi {
    /// The request for the drawing, ready to be sent.
    pub(super) async fn request(
        &self,
        drawing: &Drawing,
        fault: &ReadFault,
    ) -> Result<RequestBuilder, BackendError> {
        let size = self.native.fit(drawing.size);
        let prompt = prompt::without(&drawing.prompt, &[prompt::SD_SERVER]);
        let mut body = JsonBody::new(fault);
        let mut value = json!({
            "prompt": prompt,
            "width": size.width,
            "height": size.height,
            "batch_size": drawing.n,
            // Passed over where there is no such checkpoint.
            "override_settings": {"sd_model_checkpoint": drawing.model},
        });
        let path = match drawing.references.first() {
            None => {
                if self.upscale == Upscale::Hires && is_larger(drawing.size, size) {
                    value["enable_hr"] = json!(true);
                    value["hr_resize_x"] = json!(drawing.size.width);
                    value["hr_resize_y"] = json!(drawing.size.height);
                    value["denoising_strength"] = json!(UPSCALE_STRENGTH);
                }
                "sdapi/v1/txt2img"
            }
            Some(reference) => {
                value["init_images"] = json!([body.input(reference, Encoding::Base64)]);
                value["resize_mode"] = json!(CROP_AND_RESIZE);
                if let Some(given) = &drawing.mask {
                    let mask = mask::white_where_clear(given, Arc::clone(&self.masks)).await?;
                    value["mask"] = body.input(&mask, Encoding::Base64);
                }
                "sdapi/v1/img2img"
            }
        };
        if let Value::Object(fields) = &mut value {
            fields.extend(drawing.extra.clone());
        }
        Ok(body.on(self.endpoint.post(path), &value))
    }
}

fn is_larger(wanted: ImageSize, drawn: ImageSize) -> bool {
    let pixels = |size: ImageSize| u64::from(size.width) * u64::from(size.height);
    pixels(wanted) > pixels(drawn)
}
