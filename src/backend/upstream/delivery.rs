//! Passes images to the sink: at most as many as were requested, each within a size limit.

use bytes::Bytes;
use serde_json::Value;

use super::{BackendError, ImageSink};

/// The largest image, whether it comes in an answer or by URL.
pub(in crate::backend) const IMAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Images on their way from an answer to the sink.
pub(in crate::backend) struct Delivery<'a> {
    images: &'a mut dyn ImageSink,
    wanted: u8,
    finished: u8,
    /// The bytes of the current image so far.
    bytes: usize,
}

impl<'a> Delivery<'a> {
    /// Passes on at most `wanted` images.
    pub(in crate::backend) fn new(images: &'a mut dyn ImageSink, wanted: u8) -> Self {
        Self {
            images,
            wanted,
            finished: 0,
            bytes: 0,
        }
    }

    /// How many images are complete.
    pub(in crate::backend) fn finished(&self) -> u8 {
        self.finished
    }

    /// Whether any byte of an image has been passed on.
    pub(in crate::backend) fn has_begun(&self) -> bool {
        self.finished > 0 || self.bytes > 0
    }

    /// Whether an image has been passed on in part.
    pub(in crate::backend) fn is_within(&self) -> bool {
        self.bytes > 0
    }

    /// Whether every requested image has been passed on; further ones are ignored.
    pub(in crate::backend) fn is_done(&self) -> bool {
        self.finished == self.wanted
    }

    /// Records the usage that the upstream reports, if it is an object.
    pub(in crate::backend) fn usage(&mut self, usage: Option<Value>) {
        if let Some(usage) = usage.filter(Value::is_object) {
            self.images.usage(usage);
        }
    }

    /// Adds bytes to the current image. Fails if it grows beyond [`IMAGE_BYTES_MAX`], or if the sink fails.
    pub(in crate::backend) async fn write(&mut self, piece: Bytes) -> Result<(), BackendError> {
        if self.is_done() {
            return Ok(());
        }
        self.bytes += piece.len();
        if self.bytes > IMAGE_BYTES_MAX {
            return Err(BackendError::Failed {
                detail: format!("an image is larger than {IMAGE_BYTES_MAX} bytes"),
            });
        }
        Ok(self.images.write(piece).await?)
    }

    /// Discards the current image.
    pub(in crate::backend) fn discard(&mut self) {
        self.images.discard();
        self.bytes = 0;
    }

    /// Completes the current image. The next bytes begin another.
    pub(in crate::backend) async fn finish(&mut self) -> Result<(), BackendError> {
        if self.is_done() {
            return Ok(());
        }
        self.images.finish().await?;
        self.finished += 1;
        self.bytes = 0;
        Ok(())
    }
}
