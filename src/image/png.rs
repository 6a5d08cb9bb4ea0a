//! Walks a PNG, chunk by chunk. Facts: W3C PNG specification, third edition, sections 5 and 11.

use super::{
    ImageSize, InvalidImage, Limits,
    walk::{Step, Then, Walk, array},
};

/// Signature, then IHDR with its length, name, 13 bytes and checksum.
const HEADER_BYTES: usize = 8 + 8 + 13 + 4;
/// Length and name.
const CHUNK_HEAD_BYTES: usize = 8;
const CHUNK_BYTES_MAX: u32 = 0x7FFF_FFFF;

/// The chunks that decide what is seen; all others that may be left out are.
const KEPT: [&[u8; 4]; 17] = [
    b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs",
    b"bKGD", b"cICP", b"mDCV", b"cLLI", b"acTL", b"fcTL", b"fdAT",
];

pub(super) struct Walker {
    limits: Limits,
    size: Option<ImageSize>,
    data: Data,
}

#[derive(PartialEq, Eq)]
enum Data {
    Awaited,
    Seen,
}

impl Walker {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            data: Data::Awaited,
        }
    }

    /// The checksum is worth its while here: the size that other limits rest on is in this chunk.
    fn header(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let chunk = field.get(12..29).ok_or(InvalidImage::Damaged)?;
        let intact = array(field, 8)? == 13_u32.to_be_bytes()
            && chunk.starts_with(b"IHDR")
            && array(field, 29)? == crc32fast::hash(chunk).to_be_bytes();
        if !intact {
            return Err(InvalidImage::Damaged);
        }
        let size = ImageSize {
            width: u32::from_be_bytes(array(chunk, 4)?),
            height: u32::from_be_bytes(array(chunk, 8)?),
        };
        self.limits.check(size)?;
        self.size = Some(size);
        Ok(Step::Keep {
            body: 0,
            then: Then::Field(CHUNK_HEAD_BYTES),
        })
    }

    fn chunk(&mut self, length: u32, name: [u8; 4]) -> Result<Step, InvalidImage> {
        if length > CHUNK_BYTES_MAX || !name.iter().all(u8::is_ascii_alphabetic) {
            return Err(InvalidImage::Damaged);
        }
        // The checksum stands behind what the length counts.
        let body = u64::from(length) + 4;
        let then = match &name {
            b"IEND" if length > 0 || self.data == Data::Awaited => {
                return Err(InvalidImage::Damaged);
            }
            b"IEND" => Then::End,
            b"IDAT" => {
                self.data = Data::Seen;
                Then::Field(CHUNK_HEAD_BYTES)
            }
            _ => Then::Field(CHUNK_HEAD_BYTES),
        };
        if KEPT.contains(&&name) {
            Ok(Step::Keep { body, then })
        } else if name[0].is_ascii_lowercase() {
            Ok(Step::Drop { body, then })
        } else {
            // No decoder may go on past a critical chunk that it does not know, or a second IHDR.
            Err(InvalidImage::Damaged)
        }
    }
}

impl Walk for Walker {
    fn first_field(&self) -> usize {
        HEADER_BYTES
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        if self.size.is_none() {
            return self.header(field);
        }
        let length = u32::from_be_bytes(array(field, 0)?);
        self.chunk(length, array(field, 4)?)
    }

    fn size(&self) -> Option<ImageSize> {
        self.size
    }
}
