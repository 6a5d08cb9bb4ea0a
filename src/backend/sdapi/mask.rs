//! Converts OpenAI's masks to the web UI's: OpenAI marks the part to regenerate as transparent, the web UI
//! as white on black.

use std::sync::Arc;

use bytes::Bytes;
use image::{ExtendedColorType, GrayImage, ImageEncoder, Luma, codecs::png::PngEncoder};
use tokio::sync::Semaphore;

use super::BackendError;
use crate::{
    backend::{Input, whole_input},
    image::Format,
};

/// The name in messages to clients.
const NAME: &str = "the mask";

/// A mask without an alpha channel is assumed to be in the web UI's format already. `turns` limits conversion
/// to one mask at a time, because it takes memory in proportion to the pixels.
pub(super) async fn white_where_clear(
    mask: &Input,
    turns: Arc<Semaphore>,
) -> Result<Input, BackendError> {
    let turn = turns.acquire_owned().await.map_err(failed)?;
    let bytes = whole_input::read(mask, NAME).await?;
    let work = move || {
        let _turn = turn;
        convert(&bytes)
    };
    let png = tokio::task::spawn_blocking(work).await.map_err(failed)??;
    Ok(whole_input::of_bytes(Format::Png, png))
}

fn convert(bytes: &[u8]) -> Result<Bytes, BackendError> {
    let decoded = whole_input::decode(bytes, NAME)?;
    let white = if decoded.color().has_alpha() {
        let given = decoded.into_luma_alpha8();
        let is_clear = |x, y| given.get_pixel(x, y).0[1] < 128;
        GrayImage::from_fn(given.width(), given.height(), |x, y| {
            Luma([if is_clear(x, y) { 255 } else { 0 }])
        })
    } else {
        decoded.into_luma8()
    };
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&white, white.width(), white.height(), ExtendedColorType::L8)
        .map_err(failed)?;
    Ok(png.into())
}

fn failed(error: impl std::fmt::Display) -> BackendError {
    BackendError::Failed {
        detail: format!("the mask could not be converted: {error}"),
    }
}
