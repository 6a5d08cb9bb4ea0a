//! What the parsers of the four formats have in common: each is shown one small field of the file after the
//! other, and says what becomes of it, of the bytes behind it, and where the next field is.

use bytes::Bytes;

use super::{Format, ImageSize, InvalidImage, Limits, gif, jpeg, png, webp};

/// Follows the structure of one file of its format. It decides as for a file whose metadata goes.
pub(super) trait FormatParser: Send + Sync {
    /// How many bytes the first field has. The format's signature is known to be there.
    fn first_field(&self) -> usize;

    /// Reads the next field, which has as many bytes as were asked for.
    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage>;

    /// As soon as it is known, and found within the limits.
    fn size(&self) -> Option<ImageSize>;
}

/// What becomes of a field and the `body` bytes behind it, and what stands behind those.
pub(super) enum Step {
    /// Nothing yet: the field is longer than thought, and shown again with this many bytes.
    More(usize),
    Keep {
        body: u64,
        then: Then,
    },
    Drop {
        body: u64,
        then: Then,
    },
    /// `field` is written instead of the field; the body stays as long as it is, but becomes zeros.
    Replace {
        field: Bytes,
        body: u64,
        then: Then,
    },
}

/// Where a parse goes on.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// At a field of this many bytes, one or more.
    Field(usize),
    /// At a field of two bytes that begins with the next 0xFF; the bytes before that meet this action.
    Marker(Action),
    /// Nowhere: the image is whole.
    End,
}

/// What becomes of bytes that no parser looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Keep,
    Drop,
    /// Turned into zeros: the format has told its length before.
    Blank,
}

pub(super) fn parser(format: Format, limits: Limits) -> Box<dyn FormatParser> {
    match format {
        Format::Jpeg => Box::new(jpeg::Parser::new(limits)),
        Format::Png => Box::new(png::Parser::new(limits)),
        Format::Webp => Box::new(webp::Parser::new(limits)),
        Format::Gif => Box::new(gif::Parser::new(limits)),
    }
}

/// The `N` bytes at `at`; a field that is too short for them counts as damage.
pub(super) fn array<const N: usize>(field: &[u8], at: usize) -> Result<[u8; N], InvalidImage> {
    field
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(InvalidImage::Damaged)
}
