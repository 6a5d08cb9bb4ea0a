//! Walks a GIF, block by block. Facts: the `GIF89a` specification.

use super::{
    ImageSize, InvalidImage, Limits,
    walk::{Fate, Step, Then, Walk, array},
};

/// Signature, then the logical screen.
const HEADER_BYTES: usize = 6 + 7;
const FRAME_BYTES: usize = 10;
/// An application's extension up to the end of its name, and the two names that make an animation repeat.
const APPLICATION_BYTES: usize = 3 + 11;
const LOOPS: [&[u8]; 2] = [b"\x0BNETSCAPE2.0", b"\x0BANIMEXTS1.0"];

pub(super) struct Walker {
    limits: Limits,
    size: Option<ImageSize>,
    frames: Frames,
    /// What the next field is.
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
    /// The length of a sub-block, which shares the fate of its extension.
    SubBlock(Fate),
}

impl Walker {
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
            [0x21, 0xFF, name @ ..] if LOOPS.contains(&name) => Ok(self.sub_blocks(Fate::Keep, 0)),
            // The name is the first of the sub-blocks: one of another length is passed over as such.
            [0x21, 0xFF, length] => Ok(self.sub_block(Fate::Drop, *length)),
            [0x21, 0xFF, ..] => Ok(self.sub_blocks(Fate::Drop, 0)),
            // How a frame is shown.
            [0x21, 0xF9] => Ok(self.sub_blocks(Fate::Keep, 0)),
            [0x21, _] => Ok(self.sub_blocks(Fate::Drop, 0)),
            [0x3B] if self.frames == Frames::Some => Ok(Step::Keep {
                body: 0,
                then: Then::End,
            }),
            _ => Err(InvalidImage::Damaged),
        }
    }

    /// Frames may reach out of the screen: decoders make room for them.
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
        // The byte behind the palette tells the code size of the picture's data.
        Ok(self.sub_blocks(Fate::Keep, palette_bytes(array(field, 9)?) + 1))
    }

    /// The block ends with an empty one of these.
    fn sub_block(&mut self, fate: Fate, length: u8) -> Step {
        let step = self.sub_blocks(fate, length.into());
        if length == 0 {
            self.next = Next::Block;
        }
        step
    }

    /// Sub-blocks follow after `body` bytes.
    fn sub_blocks(&mut self, fate: Fate, body: u64) -> Step {
        self.next = Next::SubBlock(fate);
        let then = Then::Field(1);
        match fate {
            Fate::Keep => Step::Keep { body, then },
            Fate::Drop | Fate::Blank => Step::Drop { body, then },
        }
    }
}

impl Walk for Walker {
    fn first_field(&self) -> usize {
        HEADER_BYTES
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        match self.next {
            Next::Header => self.header(field),
            Next::Block => self.block(field),
            Next::SubBlock(fate) => {
                let [length] = array(field, 0)?;
                Ok(self.sub_block(fate, length))
            }
        }
    }

    fn size(&self) -> Option<ImageSize> {
        self.size
    }
}

/// How long the palette is that these flags announce.
fn palette_bytes([flags]: [u8; 1]) -> u64 {
    match flags & 0x80 {
        0 => 0,
        _ => 3 << ((flags & 7) + 1),
    }
}
