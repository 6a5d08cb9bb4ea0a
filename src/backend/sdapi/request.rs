//! Builds the request: text to image, or image to image if there is a reference.

use std::sync::Arc;

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::{BackendError, GenerateRequest, Sdapi, Upscale, mask};
use crate::{
    backend::upstream::{
        inputs::{Encoding, JsonBody, ReadFault},
        prompt,
    },
    image::ImageSize,
};

/// The denoising strength while an image is enlarged: a lower one leaves it blurred, a higher one makes it
/// a different image.
const UPSCALE_STRENGTH: f64 = 0.6;
/// Crops a reference of other proportions instead of distorting it.
const CROP_AND_RESIZE: u8 = 1;

impl Sdapi {
    /// Builds the HTTP request.
    pub(super) async fn request(
        &self,
        request: &GenerateRequest,
        fault: &ReadFault,
    ) -> Result<RequestBuilder, BackendError> {
        let size = self.native.fit(request.size);
        let prompt = prompt::without(&request.prompt, &[prompt::SD_SERVER]);
        let mut body = JsonBody::new(fault);
        let mut value = json!({
            "prompt": prompt,
            "width": size.width,
            "height": size.height,
            "batch_size": request.n,
            // Ignored if there is no such checkpoint.
            "override_settings": {"sd_model_checkpoint": request.model},
        });
        let path = match request.references.first() {
            None => {
                if self.upscale == Upscale::Hires && is_larger(request.size, size) {
                    value["enable_hr"] = json!(true);
                    value["hr_resize_x"] = json!(request.size.width);
                    value["hr_resize_y"] = json!(request.size.height);
                    value["denoising_strength"] = json!(UPSCALE_STRENGTH);
                }
                "sdapi/v1/txt2img"
            }
            Some(reference) => {
                value["init_images"] = json!([body.input(reference, Encoding::Base64)]);
                value["resize_mode"] = json!(CROP_AND_RESIZE);
                if let Some(given) = &request.mask {
                    let mask = mask::white_where_clear(given, Arc::clone(&self.masks)).await?;
                    value["mask"] = body.input(&mask, Encoding::Base64);
                }
                "sdapi/v1/img2img"
            }
        };
        if let Value::Object(fields) = &mut value {
            fields.extend(request.extra.clone());
        }
        Ok(body.on(self.endpoint.post(path), &value))
    }
}

fn is_larger(wanted: ImageSize, result: ImageSize) -> bool {
    let pixels = |size: ImageSize| u64::from(size.width) * u64::from(size.height);
    pixels(wanted) > pixels(result)
}
