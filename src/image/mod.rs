//! Image formats and sizes: detects formats from the first bytes, reads sizes from headers, and streams an image
//! without its metadata. Nothing here decodes pixels.

mod detect;
mod filter;
mod gif;
mod jpeg;
mod parse;
mod png;
#[cfg(test)]
mod samples;
mod size;
mod webp;

pub use filter::{Filter, Metadata};
pub use size::{AspectRatio, ImageSize, Quality, Resolution, SizeError, resolve_size};

use serde::{Deserialize, Serialize};

/// The formats that the gateway accepts and serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Format {
    /// `image/jpeg`.
    Jpeg,
    /// `image/png`, animated or not.
    Png,
    /// `image/webp`, animated or not.
    Webp,
    /// `image/gif`, animated or not.
    Gif,
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format, detected from the first bytes.
    pub format: Format,
    /// In pixels, as stored: the orientation is not applied.
    pub width: u32,
    /// In pixels, as stored.
    pub height: u32,
}

/// Limits on an image's size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest width or height.
    pub side_px_max: u32,
    /// Width times height.
    pub pixels_max: u64,
}

/// Why bytes are not an image that the gateway accepts.
#[derive(Debug, thiserror::Error)]
pub enum InvalidImage {
    /// `detected` is the detected media type, or `application/octet-stream` if it is unknown.
    #[error("unsupported image type: {detected}, allowed: jpeg, png, gif, webp")]
    Type {
        /// A media type.
        detected: String,
    },
    /// The structure is invalid or incomplete.
    #[error("the image is damaged or cut off")]
    Damaged,
    /// A side or the whole image has too many pixels.
    #[error(
        "the image is {width}x{height} pixels; allowed are {side_px_max} a side and {pixels_max} in all"
    )]
    TooLarge {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The longest side allowed.
        side_px_max: u32,
        /// The most pixels allowed.
        pixels_max: u64,
    },
}

impl Format {
    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Gif => "image/gif",
        }
    }

    /// The file name extension, without a dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Gif => "gif",
        }
    }
}

impl Limits {
    /// An image or frame without pixels is damaged.
    fn check(self, size: ImageSize) -> Result<(), InvalidImage> {
        let ImageSize { width, height } = size;
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(InvalidImage::Damaged);
        }
        if width.max(height) > self.side_px_max || pixels > self.pixels_max {
            return Err(InvalidImage::TooLarge {
                width,
                height,
                side_px_max: self.side_px_max,
                pixels_max: self.pixels_max,
            });
        }
        Ok(())
    }
}
