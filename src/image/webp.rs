//! Parses a WebP, chunk by chunk. Sources: RFC 9649 (the container) and RFC 6386 section 9.1.
//!
//! The header declares the file's length, so nothing can be removed: metadata is replaced with zeros instead.

use super::{
    ImageSize, InvalidImage, Limits,
    parse::{FormatParser, Step, Then, array},
};

/// `RIFF`, length, `WEBP`.
const HEADER_BYTES: usize = 12;
/// Name and length.
const CHUNK_HEAD_BYTES: usize = 8;
const EXIF_AND_XMP_FLAGS: u8 = 0x08 | 0x04;

/// The state of parsing one file.
pub(super) struct Parser {
    limits: Limits,
    /// Size of the image, or of an animation's canvas.
    size: Option<ImageSize>,
    images: Images,
    /// Remaining bytes by the declared length; `None` before the header.
    left: Option<u64>,
    /// The animation frame being parsed.
    frame: Option<Frame>,
}

#[derive(PartialEq, Eq)]
enum Images {
    None,
    Some,
}

#[derive(Clone, Copy)]
struct Frame {
    size: ImageSize,
    left: u64,
}

impl Parser {
    /// At the start of a file. Larger images are rejected as soon as their size is known.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            images: Images::None,
            left: None,
            frame: None,
        }
    }

    fn header(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let length = u32::from_le_bytes(array(field, 4)?);
        // The length includes the last four bytes of the header.
        self.left = u64::from(length).checked_sub(4);
        self.keep(0, 0)
    }

    fn chunk(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let name = array(field, 0)?;
        let header_bytes = header_bytes(name);
        if field.len() < CHUNK_HEAD_BYTES + header_bytes {
            return Ok(Step::More(CHUNK_HEAD_BYTES + header_bytes));
        }
        let header = &field[CHUNK_HEAD_BYTES..];
        let length = u64::from(u32::from_le_bytes(array(field, 4)?));
        let body = length
            .checked_sub(header_bytes as u64)
            .ok_or(InvalidImage::Damaged)?;
        match &name {
            b"VP8X" if body == 0 && self.size.is_none() => return self.extended(field, header),
            b"ANMF" if self.frame.is_none() => return self.animated(field.len(), header, body),
            b"VP8 " => self.image(lossy_size(header)?)?,
            b"VP8L" => self.image(lossless_size(header)?)?,
            b"ALPH" | b"ANIM" | b"ICCP" if self.size.is_some() => {}
            b"VP8X" | b"ANMF" => return Err(InvalidImage::Damaged),
            _ if self.size.is_some() => return self.blank(field, body),
            // No other chunk may precede the one with the size.
            _ => return Err(InvalidImage::Damaged),
        }
        self.keep(field.len(), body)
    }

    /// The header of a file with more than one plain image.
    fn extended(&mut self, field: &[u8], header: &[u8]) -> Result<Step, InvalidImage> {
        let size = ImageSize {
            width: u24(header, 4)? + 1,
            height: u24(header, 7)? + 1,
        };
        self.limits.check(size)?;
        self.size = Some(size);
        let mut without_metadata = field.to_vec();
        without_metadata[CHUNK_HEAD_BYTES] &= !EXIF_AND_XMP_FLAGS;
        let (body, then) = self.spend(field.len(), 0)?;
        Ok(Step::Replace {
            field: without_metadata.into(),
            body,
            then,
        })
    }

    /// A frame of an animation. Its chunks follow and are parsed like all others.
    fn animated(
        &mut self,
        field_bytes: usize,
        header: &[u8],
        body: u64,
    ) -> Result<Step, InvalidImage> {
        let canvas = self.size.ok_or(InvalidImage::Damaged)?;
        let size = ImageSize {
            width: u24(header, 6)? + 1,
            height: u24(header, 9)? + 1,
        };
        let right = u24(header, 0)? * 2 + size.width;
        let bottom = u24(header, 3)? * 2 + size.height;
        if right > canvas.width || bottom > canvas.height || body == 0 || body % 2 == 1 {
            return Err(InvalidImage::Damaged);
        }
        let step = self.keep(field_bytes, 0)?;
        if self.left < Some(body) {
            return Err(InvalidImage::Damaged);
        }
        self.frame = Some(Frame { size, left: body });
        Ok(step)
    }

    /// An image must match the size of its frame or canvas. A plain image defines the size.
    fn image(&mut self, size: ImageSize) -> Result<(), InvalidImage> {
        self.images = Images::Some;
        match self.frame.map(|frame| frame.size).or(self.size) {
            Some(told) if told == size => Ok(()),
            Some(_) => Err(InvalidImage::Damaged),
            None => {
                self.limits.check(size)?;
                self.size = Some(size);
                Ok(())
            }
        }
    }

    /// Replaces data not needed to show the image with a chunk that decoders ignore.
    fn blank(&mut self, field: &[u8], body: u64) -> Result<Step, InvalidImage> {
        let mut junk = field.to_vec();
        junk[..4].copy_from_slice(b"JUNK");
        let (body, then) = self.spend(field.len(), body)?;
        Ok(Step::Replace {
            field: junk.into(),
            body,
            then,
        })
    }

    fn keep(&mut self, field_bytes: usize, body: u64) -> Result<Step, InvalidImage> {
        let (body, then) = self.spend(field_bytes, body)?;
        Ok(Step::Keep { body, then })
    }

    /// Subtracts a chunk's bytes from the rest of the file and of its frame. Chunks have an even number of bytes, but
    /// some files lack the final padding byte.
    fn spend(&mut self, field_bytes: usize, body: u64) -> Result<(u64, Then), InvalidImage> {
        let field_bytes = field_bytes as u64;
        let file_left = self.left.ok_or(InvalidImage::Damaged)?;
        let left = self.frame.map_or(file_left, |frame| frame.left);
        let spare = left
            .checked_sub(field_bytes + body)
            .ok_or(InvalidImage::Damaged)?;
        let body = body + spare.min((field_bytes + body) % 2);
        let file_left = file_left
            .checked_sub(field_bytes + body)
            .ok_or(InvalidImage::Damaged)?;
        self.left = Some(file_left);
        if let Some(frame) = &mut self.frame {
            frame.left -= field_bytes + body;
        }
        self.frame = self.frame.filter(|frame| frame.left > 0);
        match file_left {
            0 if self.images == Images::None => Err(InvalidImage::Damaged),
            0 => Ok((body, Then::End)),
            _ => Ok((body, Then::Field(CHUNK_HEAD_BYTES))),
        }
    }
}

impl FormatParser for Parser {
    fn first_field(&self) -> usize {
        HEADER_BYTES
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        match self.left {
            None => self.header(field),
            Some(_) => self.chunk(field),
        }
    }

    fn size(&self) -> Option<ImageSize> {
        self.size
    }
}

/// How many bytes of a chunk, besides its name and length, the parser needs.
fn header_bytes(name: [u8; 4]) -> usize {
    match &name {
        b"VP8X" | b"VP8 " => 10,
        b"VP8L" => 5,
        b"ANMF" => 16,
        _ => 0,
    }
}

/// The two bits above each side only scale the display size.
fn lossy_size(header: &[u8]) -> Result<ImageSize, InvalidImage> {
    let is_key_frame = header[0] & 1 == 0 && array(header, 3)? == *b"\x9D\x01\x2A";
    if !is_key_frame {
        return Err(InvalidImage::Damaged);
    }
    Ok(ImageSize {
        width: u32::from(u16::from_le_bytes(array(header, 6)?) & 0x3FFF),
        height: u32::from(u16::from_le_bytes(array(header, 8)?) & 0x3FFF),
    })
}

/// A signature byte, 14 bits per side, one for alpha and three for the version.
fn lossless_size(header: &[u8]) -> Result<ImageSize, InvalidImage> {
    let bits = u32::from_le_bytes(array(header, 1)?);
    if header[0] != 0x2F || bits >> 29 != 0 {
        return Err(InvalidImage::Damaged);
    }
    Ok(ImageSize {
        width: (bits & 0x3FFF) + 1,
        height: (bits >> 14 & 0x3FFF) + 1,
    })
}

fn u24(field: &[u8], at: usize) -> Result<u32, InvalidImage> {
    let [low, middle, high] = array(field, at)?;
    Ok(u32::from_le_bytes([low, middle, high, 0]))
}

#[cfg(test)]
mod tests {
    use ::image::{AnimationDecoder, ImageDecoder, codecs::webp::WebPDecoder};

    use crate::image::{
        Metadata,
        samples::{self, with_webp_chunk},
    };

    const DAMAGED: &str = "the image is damaged or cut off";

    fn outcome(image: &[u8]) -> String {
        match samples::filter(Metadata::Strip, [image]) {
            Ok((_, info)) => format!("{}x{}", info.width, info.height),
            Err(error) => error.to_string(),
        }
    }

    fn decoder(image: &[u8]) -> WebPDecoder<std::io::Cursor<&[u8]>> {
        WebPDecoder::new(std::io::Cursor::new(image)).unwrap()
    }

    fn file(chunks: &[([u8; 4], &[u8])]) -> Vec<u8> {
        let empty = b"RIFF\x04\0\0\0WEBP".to_vec();
        chunks.iter().fold(empty, |image, (name, data)| {
            with_webp_chunk(image, *name, data)
        })
    }

    fn lossless(width: u32, height: u32) -> Vec<u8> {
        let bits = (width - 1) | (height - 1) << 14;
        [&[0x2F], &bits.to_le_bytes()[..], b"data"].concat()
    }

    fn extended(width: u32, height: u32) -> Vec<u8> {
        let [width, height] = [width - 1, height - 1].map(u32::to_le_bytes);
        [&[0; 4], &width[..3], &height[..3]].concat()
    }

    #[test]
    fn metadata_becomes_zeros_of_the_same_length() {
        let image = samples::webp();
        let stripped = samples::strip(&image);
        assert_eq!(stripped.len(), image.len());
        assert!(decoder(&image).exif_metadata().unwrap().is_some());
        assert!(decoder(&image).xmp_metadata().unwrap().is_some());
        assert_eq!(decoder(&stripped).exif_metadata().unwrap(), None);
        assert_eq!(decoder(&stripped).xmp_metadata().unwrap(), None);
        assert_eq!(stripped[20] & 0x0C, 0);
        for name in [b"EXIF", b"XMP "] {
            assert!(!samples::contains(&stripped, name));
        }
    }

    #[test]
    fn an_animation_stays_one() {
        let image = samples::animated_webp();
        let frames = |image| decoder(image).into_frames().collect_frames().unwrap();
        let (before, after) = (frames(&image), frames(&samples::strip(&image)));
        assert_eq!(before.len(), 2);
        assert!(
            before
                .iter()
                .map(::image::Frame::buffer)
                .eq(after.iter().map(::image::Frame::buffer))
        );
    }

    #[test]
    fn sizes_of_all_three_kinds() {
        assert_eq!(outcome(&samples::lossy_webp()), "16x16");
        assert_eq!(
            outcome(&file(&[(*b"VP8L", &lossless(16_384, 3))])),
            "16384x3"
        );
        let both = [(*b"VP8X", &extended(3, 5)[..]), (*b"VP8L", &lossless(3, 5))];
        assert_eq!(outcome(&file(&both)), "3x5");
    }

    #[test]
    fn the_header_alone_tells_that_it_is_too_large() {
        insta::assert_snapshot!(
            outcome(&file(&[(*b"VP8X", &extended(65_535, 65_535))])[..30]),
            @"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
        );
        insta::assert_snapshot!(
            outcome(&file(&[(*b"VP8L", &lossless(16_384, 16_384))])),
            @"the image is 16384x16384 pixels; allowed are 16384 a side and 50000000 in all"
        );
    }

    #[test]
    fn structure_is_checked() {
        let (canvas, image) = (extended(4, 4), lossless(4, 4));
        let canvas = (*b"VP8X", &canvas[..]);
        let image = (*b"VP8L", &image[..]);
        let frame = |chunk: &[u8]| [&[0; 6], &[3, 0, 0, 3, 0, 0, 0, 0, 0, 0][..], chunk].concat();
        let inner = &file(&[image])[12..];
        assert_eq!(outcome(&file(&[canvas, (*b"ANMF", &frame(inner))])), "4x4");
        let mut outside = frame(inner);
        outside[0] = 1;
        let short = frame(&inner[..inner.len() - 2]);
        for (what, chunks) in [
            ("nothing", vec![]),
            ("no image", vec![canvas]),
            ("metadata only", vec![canvas, (*b"EXIF", b"x")]),
            ("another size", vec![canvas, (*b"VP8L", &lossless(4, 5))]),
            ("two headers", vec![canvas, canvas, image]),
            ("something in front", vec![(*b"EXIF", b"x"), image]),
            ("empty image", vec![(*b"VP8L", b"")]),
            ("another signature", vec![(*b"VP8L", &[0; 20])]),
            ("no key frame", vec![(*b"VP8 ", &[1; 20])]),
            ("frame without a canvas", vec![(*b"ANMF", &frame(inner))]),
            ("frame outside", vec![canvas, (*b"ANMF", &outside)]),
            ("empty frame", vec![canvas, (*b"ANMF", &frame(b"")), image]),
            ("short frame", vec![canvas, (*b"ANMF", &short), image]),
        ] {
            assert_eq!(outcome(&file(&chunks)), DAMAGED, "{what}");
        }
    }

    #[test]
    fn lengths_must_agree() {
        let image = samples::lossy_webp();
        for at in [4, 16] {
            for change in [-100, -2, 2, 100] {
                let mut bent = image.clone();
                bent[at] = bent[at].wrapping_add_signed(change);
                assert_eq!(outcome(&bent), DAMAGED, "{at} {change}");
            }
        }
    }

    #[test]
    fn the_last_filling_byte_may_be_missing() {
        let mut image = file(&[(*b"VP8L", &lossless(4, 4))]);
        image.pop();
        image[4] -= 1;
        assert_eq!(outcome(&image), "4x4");
    }
}
