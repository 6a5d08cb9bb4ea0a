//! Crops and scales a reference to the size of the image.

use image::{GenericImageView, RgbImage, imageops::FilterType};

use super::BackendError;
use crate::{
    backend::whole_input::{self, SIDE_PX_MAX},
    image::ImageSize,
};

/// The name in messages to clients.
pub(super) const NAME: &str = "the first reference";

/// The center of the image, scaled to cover `size`.
pub(super) fn fit(bytes: &[u8], size: ImageSize) -> Result<RgbImage, BackendError> {
    let decoded = whole_input::decode(bytes, NAME)?;
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
    // One way for each direction: the filter is smooth when enlarging, but takes much memory when shrinking.
    let fitted = if used_width > size.width {
        used.thumbnail_exact(size.width, size.height)
    } else {
        used.resize_exact(size.width, size.height, FilterType::Triangle)
    };
    Ok(fitted.into_rgb8())
}
