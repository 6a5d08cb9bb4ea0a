//! Reads a reference and cuts it to the size of the picture.

use std::io::Cursor;

use futures_util::TryStreamExt;
use image::{GenericImageView, ImageReader, Limits, RgbImage, imageops::FilterType};

use super::BackendError;
use crate::{backend::Input, image::ImageSize};

const BYTES_MAX: u64 = 64 * 1024 * 1024;
const SIDE_PX_MAX: u32 = 16_384;
const DECODED_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(super) async fn read(input: &Input) -> Result<Vec<u8>, BackendError> {
    if input.length > BYTES_MAX {
        return Err(BackendError::Invalid {
            message: format!("a reference may have at most {BYTES_MAX} bytes"),
        });
    }
    let mut stream = (input.open)().await.map_err(BackendError::Input)?;
    let mut bytes = Vec::with_capacity(usize::try_from(input.length).unwrap_or_default());
    while let Some(piece) = stream.try_next().await.map_err(BackendError::Input)? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The middle of the image, scaled so that it covers `size`.
pub(super) fn fit(bytes: &[u8], size: ImageSize) -> Result<RgbImage, BackendError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_PX_MAX);
    limits.max_image_height = Some(SIDE_PX_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(BackendError::Input)?;
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| BackendError::Invalid {
        message: format!("the first reference can't be drawn on: {error}"),
    })?;
    let (width, height) = decoded.dimensions();
    let (wide, high) = (u64::from(width), u64::from(height));
    let (to_width, to_height) = (u64::from(size.width), u64::from(size.height));
    let used_width = (high * to_width / to_height.max(1)).clamp(1, wide);
    let used_height = (wide * to_height / to_width.max(1)).clamp(1, high);
    let [used_width, used_height] =
        [used_width, used_height].map(|side| u32::try_from(side).unwrap_or(SIDE_PX_MAX));
    let used = decoded.crop_imm(
        (width - used_width) / 2,
        (height - used_height) / 2,
        used_width,
        used_height,
    );
    drop(decoded);
    // Each in its own best way: the filter is soft upwards, but downwards it needs much memory.
    let fitted = if used_width > size.width {
        used.thumbnail_exact(size.width, size.height)
    } else {
        used.resize_exact(size.width, size.height, FilterType::Triangle)
    };
    Ok(fitted.into_rgb8())
}
