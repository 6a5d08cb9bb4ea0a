//! Turns a mask of OpenAI's kind into one of the web UI's: there, what is to be drawn anew is clear; here,
//! it is white on black.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use image::{ExtendedColorType, ImageEncoder, Luma, codecs::png::PngEncoder};

use super::BackendError;
use crate::{
    backend::{Input, whole_input},
    image::Format,
};

/// As clients are told it.
const NAME: &str = "the mask";

/// A mask without an alpha channel is taken for one of the web UI's kind already.
pub(super) async fn white_where_clear(mask: &Input) -> Result<Input, BackendError> {
    let bytes = whole_input::read(mask, NAME).await?;
    let png = tokio::task::spawn_blocking(move || convert(&bytes))
        .await
        .map_err(failed)??;
    Ok(Input {
        format: Format::Png,
        length: png.len() as u64,
        open: Arc::new(move || {
            let png = png.clone();
            async move { Ok(stream::iter([Ok(png)]).boxed()) }.boxed()
        }),
    })
}

fn convert(bytes: &[u8]) -> Result<Bytes, BackendError> {
    let decoded = whole_input::decode(bytes, NAME)?;
    let has_alpha = decoded.color().has_alpha();
    let mut grey = decoded.into_luma_alpha8();
    if has_alpha {
        for pixel in grey.pixels_mut() {
            pixel.0[0] = if pixel.0[1] < 128 { 255 } else { 0 };
        }
    }
    let white = image::GrayImage::from_fn(grey.width(), grey.height(), |x, y| {
        Luma([grey.get_pixel(x, y).0[0]])
    });
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&white, white.width(), white.height(), ExtendedColorType::L8)
        .map_err(failed)?;
    Ok(png.into())
}

fn failed(error: impl std::fmt::Display) -> BackendError {
    BackendError::Failed {
        detail: format!("the mask could not be turned: {error}"),
    }
}
