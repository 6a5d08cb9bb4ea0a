//! Parses a PNG, chunk by chunk. Source: W3C PNG specification, third edition, sections 5 and 11.

use super::{
    ImageSize, InvalidImage, Limits,
    parse::{FormatParser, Step, Then, array},
};

/// Signature, then IHDR with its length, name, 13 bytes and checksum.
const HEADER_BYTES: usize = 8 + 8 + 13 + 4;
/// Length and name.
const CHUNK_HEAD_BYTES: usize = 8;
const CHUNK_BYTES_MAX: u32 = 0x7FFF_FFFF;

/// Chunks that affect the visible image. All other optional chunks are dropped.
const KEPT: [&[u8; 4]; 17] = [
    b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs",
    b"bKGD", b"cICP", b"mDCV", b"cLLI", b"acTL", b"fcTL", b"fdAT",
];

/// The state of parsing one file.
pub(super) struct Parser {
    limits: Limits,
    size: Option<ImageSize>,
    data: Data,
}

#[derive(PartialEq, Eq)]
enum Data {
    Awaited,
    Seen,
}

impl Parser {
    /// At the start of a file. Larger images are rejected as soon as their size is known.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            data: Data::Awaited,
        }
    }

    /// The checksum is verified here, because other limits rely on the size in this chunk.
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
        // The length does not include the checksum.
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
            // No decoder may continue after an unknown critical chunk or a second IHDR.
            Err(InvalidImage::Damaged)
        }
    }
}

impl FormatParser for Parser {
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

#[cfg(test)]
mod tests {
    use crate::image::{Metadata, samples};

    fn header(width: u32, height: u32) -> Vec<u8> {
        let data = [
            &width.to_be_bytes()[..],
            &height.to_be_bytes(),
            &[8, 2, 0, 0, 0],
        ]
        .concat();
        [
            &b"\x89PNG\r\n\x1A\n"[..],
            &samples::png_chunk(*b"IHDR", &data),
        ]
        .concat()
    }

    fn outcome(image: &[u8]) -> String {
        match samples::filter(Metadata::Strip, [image]) {
            Ok((_, info)) => format!("{}x{}", info.width, info.height),
            Err(error) => error.to_string(),
        }
    }

    const DAMAGED: &str = "the image is damaged or cut off";

    #[test]
    fn only_what_decides_what_is_seen_stays() {
        let stripped = samples::strip(&samples::png());
        let mut names = Vec::new();
        let mut rest = &stripped[8..];
        while let Some((head, behind)) = rest.split_at_checked(8) {
            let length = u32::from_be_bytes(*head.first_chunk().unwrap()) as usize;
            names.push(String::from_utf8_lossy(&head[4..]));
            rest = &behind[length + 4..];
        }
        assert_eq!(names, ["IHDR", "pHYs", "IDAT", "IEND"]);
    }

    #[test]
    fn the_header_alone_tells_that_it_is_too_large() {
        insta::assert_snapshot!(
            outcome(&header(65_535, 65_535)),
            @"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
        );
        insta::assert_snapshot!(
            outcome(&header(16_385, 1)),
            @"the image is 16385x1 pixels; allowed are 16384 a side and 50000000 in all"
        );
        insta::assert_snapshot!(
            outcome(&header(8000, 6251)),
            @"the image is 8000x6251 pixels; allowed are 16384 a side and 50000000 in all"
        );
        assert_eq!(outcome(&header(u32::MAX, 0)), DAMAGED);
    }

    #[test]
    fn structure_is_checked() {
        let data = samples::png_chunk(*b"IDAT", b"x");
        let end = samples::png_chunk(*b"IEND", b"");
        let image = |parts: &[&[u8]]| outcome(&[header(5000, 10_000), parts.concat()].concat());
        assert_eq!(image(&[&data, &end]), "5000x10000");
        assert_eq!(image(&[&end]), DAMAGED, "no data");
        assert_eq!(
            image(&[&header(1, 1)[8..], &data, &end]),
            DAMAGED,
            "two headers"
        );
        assert_eq!(
            image(&[&data, &samples::png_chunk(*b"NEWs", b""), &end]),
            DAMAGED
        );
        assert_eq!(
            image(&[&data, &samples::png_chunk(*b"a\0cd", b""), &end]),
            DAMAGED
        );
        assert_eq!(
            image(&[&data, &samples::png_chunk(*b"IEND", b"x")]),
            DAMAGED
        );
        assert_eq!(
            image(&[&data, b"\xFF\xFF\xFF\xFFtEXt"]),
            DAMAGED,
            "too long a chunk"
        );
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_not_believed() {
        let mut image = samples::png();
        image[19] ^= 1;
        assert_eq!(outcome(&image), DAMAGED);
    }
}
