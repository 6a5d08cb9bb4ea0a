//! What the four format parsers share: each receives one small field of the file at a time and returns the action for
//! the field and its body, and where the next field starts.

use bytes::Bytes;

use super::{ImageSize, InvalidImage};

/// Parses one file of its format. It decides as if metadata must be removed.
pub(super) trait FormatParser: Send + Sync {
    /// The length of the first field. The format's signature was already verified.
    fn first_field(&self) -> usize;

    /// Reads the next field, which has the requested length.
    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage>;

    /// The format and size, once known and within the limits.
    fn size(&self) -> Option<ImageSize>;
}

/// The action for a field and the `body` bytes after it, and what follows those.
pub(super) enum Step {
    /// Nothing yet: the field is longer than expected. It is passed again with this many bytes.
    More(usize),
    /// Write the field and the body.
    Keep {
        /// The length of the body in bytes.
        body: u64,
        /// What follows the body.
        then: Then,
    },
    /// Write neither the field nor the body.
    Drop {
        /// The length of the body in bytes.
        body: u64,
        /// What follows the body.
        then: Then,
    },
    /// Write `field` instead of the field. The body keeps its length but becomes zeros.
    Replace {
        /// The bytes to write.
        field: Bytes,
        /// The length of the body in bytes.
        body: u64,
        /// What follows the body.
        then: Then,
    },
}

/// Where a parse continues.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// At a field of this many bytes, one or more.
    Field(usize),
    /// At a two-byte field that begins with the next 0xFF. The bytes before it get this action.
    Marker(Action),
    /// Nowhere: the image is complete.
    End,
}

/// The action for bytes that no parser reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Write them.
    Keep,
    /// Leave them out.
    Drop,
    /// Replace with zeros: the format has already declared the length.
    Blank,
}

/// The `N` bytes at `at`. A field that is too short counts as damaged.
pub(super) fn array<const N: usize>(field: &[u8], at: usize) -> Result<[u8; N], InvalidImage> {
    field
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(InvalidImage::Damaged)
}
