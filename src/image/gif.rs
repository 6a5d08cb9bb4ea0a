//! Parses a GIF, block by block. Source: Graphics Interchange Format, version 89a.

use super::{
    ImageSize, InvalidImage, Limits,
    parse::{Action, FormatParser, Step, Then, array},
};

/// Signature, then the logical screen.
const HEADER_BYTES: usize = 6 + 7;
const FRAME_BYTES: usize = 10;
/// An application extension up to the end of its name, and the two names that make an animation repeat.
const APPLICATION_BYTES: usize = 3 + 11;
const LOOPS: [&[u8]; 2] = [b"\x0BNETSCAPE2.0", b"\x0BANIMEXTS1.0"];

/// The state of parsing one file.
pub(super) struct Parser {
    limits: Limits,
    size: Option<ImageSize>,
    frames: Frames,
    /// The kind of the next field.
    next: Next,
}

#[derive(PartialEq, Eq)]
enum Frames {
    None,
    Some,
}

#[derive(Clone, Copy)]
enum Next {
    Header,
    Block,
    /// The length of a sub-block, which has the action of its extension.
    SubBlock(Action),
}

impl Parser {
    /// At the start of a file. Larger images are rejected as soon as their size is known.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            frames: Frames::None,
            next: Next::Header,
        }
    }

    fn header(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let size = ImageSize {
            width: u16::from_le_bytes(array(field, 6)?).into(),
            height: u16::from_le_bytes(array(field, 8)?).into(),
        };
        self.limits.check(size)?;
        self.size = Some(size);
        self.next = Next::Block;
        Ok(Step::Keep {
            body: palette_bytes(array(field, 10)?),
            then: Then::Field(1),
        })
    }

    fn block(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        match field {
            [0x2C, ..] if field.len() < FRAME_BYTES => Ok(Step::More(FRAME_BYTES)),
            [0x2C, ..] => self.frame(field),
            [0x21] => Ok(Step::More(2)),
            [0x21, 0xFF] => Ok(Step::More(3)),
            [0x21, 0xFF, 11] => Ok(Step::More(APPLICATION_BYTES)),
            [0x21, 0xFF, name @ ..] if LOOPS.contains(&name) => {
                Ok(self.sub_blocks(Action::Keep, 0))
            }
            // The name is the first sub-block. One of another length is dropped as an ordinary sub-block.
            [0x21, 0xFF, length] => Ok(self.sub_block(Action::Drop, *length)),
            // How a frame is displayed.
            [0x21, 0xF9] => Ok(self.sub_blocks(Action::Keep, 0)),
            [0x21, ..] => Ok(self.sub_blocks(Action::Drop, 0)),
            [0x3B] if self.frames == Frames::Some => Ok(Step::Keep {
                body: 0,
                then: Then::End,
            }),
            _ => Err(InvalidImage::Damaged),
        }
    }

    /// Frames may extend beyond the screen: decoders enlarge it.
    fn frame(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let number = |at| Ok(u32::from(u16::from_le_bytes(array(field, at)?)));
        let frame = ImageSize {
            width: number(5)?,
            height: number(7)?,
        };
        self.limits.check(frame)?;
        self.limits.check(ImageSize {
            width: number(1)? + frame.width,
            height: number(3)? + frame.height,
        })?;
        self.frames = Frames::Some;
        // The byte after the palette gives the code size of the image's data.
        Ok(self.sub_blocks(Action::Keep, palette_bytes(array(field, 9)?) + 1))
    }

    /// The block ends with an empty sub-block.
    fn sub_block(&mut self, action: Action, length: u8) -> Step {
        let step = self.sub_blocks(action, length.into());
        if length == 0 {
            self.next = Next::Block;
        }
        step
    }

    /// Sub-blocks follow after `body` bytes.
    fn sub_blocks(&mut self, action: Action, body: u64) -> Step {
        self.next = Next::SubBlock(action);
        let then = Then::Field(1);
        match action {
            Action::Keep => Step::Keep { body, then },
            Action::Drop | Action::Blank => Step::Drop { body, then },
        }
    }
}

impl FormatParser for Parser {
    fn first_field(&self) -> usize {
        HEADER_BYTES
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        match self.next {
            Next::Header => self.header(field),
            Next::Block => self.block(field),
            Next::SubBlock(action) => {
                let [length] = array(field, 0)?;
                Ok(self.sub_block(action, length))
            }
        }
    }

    fn size(&self) -> Option<ImageSize> {
        self.size
    }
}

/// The length of the palette that these flags declare.
fn palette_bytes([flags]: [u8; 1]) -> u64 {
    match flags & 0x80 {
        0 => 0,
        _ => 3 << ((flags & 7) + 1),
    }
}

#[cfg(test)]
mod tests {
    use ::image::{AnimationDecoder, codecs::gif::GifDecoder};

    use crate::image::{Metadata, samples};

    const DAMAGED: &str = "the image is damaged or cut off";

    fn outcome(image: &[u8]) -> String {
        match samples::filter(Metadata::Strip, [image]) {
            Ok((_, info)) => format!("{}x{}", info.width, info.height),
            Err(error) => error.to_string(),
        }
    }

    fn image(width: u16, height: u16, blocks: &[&[u8]]) -> Vec<u8> {
        let [width, height] = [width, height].map(u16::to_le_bytes);
        [
            b"GIF89a",
            &width[..],
            &height,
            &[0; 3],
            &blocks.concat(),
            b"\x3B",
        ]
        .concat()
    }

    /// A frame with its own palette and two sub-blocks.
    fn frame([left, top, width, height]: [u16; 4]) -> Vec<u8> {
        let numbers = [left, top, width, height].map(u16::to_le_bytes).concat();
        [&[0x2C], &numbers[..], b"\x80colour\x02\x02\x3B\x3B\x01x\0"].concat()
    }

    #[test]
    fn an_animation_stays_one_and_goes_on_repeating() {
        let image = samples::gif();
        let stripped = samples::strip(&image);
        let frames = |image| {
            let decoder = GifDecoder::new(std::io::Cursor::new(image)).unwrap();
            decoder.into_frames().collect_frames().unwrap()
        };
        let (before, after): (Vec<_>, Vec<_>) = (frames(&image[..]), frames(&stripped));
        assert_eq!(before.len(), 2);
        for (before, after) in before.iter().zip(&after) {
            assert!(before.buffer() == after.buffer());
            assert_eq!(before.delay(), after.delay());
        }
        assert!(samples::contains(&stripped, b"NETSCAPE2.0"));
        for dropped in [&b"XMP Data"[..], b"\x21\xFE", b"short"] {
            assert!(!samples::contains(&stripped, dropped));
        }
    }

    #[test]
    fn extensions_of_any_shape_are_passed_over() {
        let frame = frame([0, 0, 3, 2]);
        let plain = image(3, 2, &[&frame]);
        for blocks in [
            &[][..],
            &[&b"XMP DataXMP"[..]],
            &[b"XMP DataXMP", b"x", &[0x3B; 255]],
            &[b"NETSCAPE2.1", b"x"],
            &[b"a"],
            &[&[b'a'; 200], b"b"],
        ] {
            for label in [0x01, 0xFE, 0xFF, 0x77] {
                let extension = samples::gif_extension(label, blocks);
                let odd = image(3, 2, &[&extension, &frame, &extension]);
                assert!(samples::strip(&odd) == plain, "{label} {blocks:?}");
            }
        }
    }

    #[test]
    fn structure_is_checked() {
        let good = frame([1, 1, 4, 4]);
        assert_eq!(outcome(&image(3, 2, &[&good])), "3x2");
        assert_eq!(
            outcome(b"GIF89a\x20\x2F\x2A\x01\0\0\0*/=1;alert(1)"),
            DAMAGED
        );
        assert_eq!(outcome(&image(3, 2, &[])), DAMAGED, "no frame");
        assert_eq!(outcome(&image(0, 2, &[&good])), DAMAGED, "no width");
        assert_eq!(
            outcome(&image(3, 2, &[&frame([0, 0, 0, 1])])),
            DAMAGED,
            "empty frame"
        );
        assert_eq!(
            outcome(&image(3, 2, &[&good, b"\0"])),
            DAMAGED,
            "no such block"
        );
    }

    #[test]
    fn screen_and_frames_tell_that_it_is_too_large() {
        insta::assert_snapshot!(
            outcome(&image(65_535, 65_535, &[])),
            @"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
        );
        insta::assert_snapshot!(
            outcome(&image(1, 1, &[&frame([0, 0, 65_535, 65_535])])),
            @"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
        );
        insta::assert_snapshot!(
            outcome(&image(1, 1, &[&frame([65_535, 0, 1, 1])])),
            @"the image is 65536x1 pixels; allowed are 16384 a side and 50000000 in all"
        );
    }
}
