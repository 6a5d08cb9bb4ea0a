//! Inputs in memory: those whose pixels are needed, read and decoded within limits, and those made here.

use std::{io::Cursor, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use image::{DynamicImage, ImageReader, Limits};

use super::{BackendError, Input};
use crate::image::Format;

const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The longest side that is decoded.
pub(super) const SIDE_PX_MAX: u32 = 16_384;
const DECODED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Reads an input into memory. Clients see `name` in error messages.
pub(super) async fn read(input: &Input, name: &str) -> Result<Vec<u8>, BackendError> {
    if input.length > BYTES_MAX {
        return Err(BackendError::Invalid {
            message: format!("{name} may have at most {BYTES_MAX} bytes"),
        });
    }
    let mut stream = (input.open)().await.map_err(BackendError::Input)?;
    let mut bytes = Vec::with_capacity(usize::try_from(input.length).unwrap_or_default());
    while let Some(piece) = stream.try_next().await.map_err(BackendError::Input)? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// An input of these bytes.
pub(super) fn of_bytes(format: Format, bytes: Bytes) -> Input {
    Input {
        format,
        length: bytes.len() as u64,
        open: Arc::new(move || {
            let bytes = bytes.clone();
            async move { Ok(stream::iter([Ok(bytes)]).boxed()) }.boxed()
        }),
        link: None,
    }
}

/// Decodes an image. Uses a full core, and memory in proportion to the pixels.
pub(super) fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage, BackendError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_PX_MAX);
    limits.max_image_height = Some(SIDE_PX_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(BackendError::Input)?;
    reader.limits(limits);
    reader.decode().map_err(|error| BackendError::Invalid {
        message: format!("{name} can't be used: {error}"),
    })
}
