//! Walks a JPEG, marker by marker, through all its scans. Facts: ITU-T T.81 annex B, JFIF 1.02, Exif 2.32.

use ::image::metadata::Orientation;
use bytes::Bytes;

use super::{
    ImageSize, InvalidImage, Limits,
    walk::{Fate, Step, Then, Walk, array},
};

const EXIF: &[u8] = b"Exif\0\0";

/// The application segments that decide what is seen, by how they begin.
const KEPT: [(u8, &[u8]); 3] = [
    (0xE0, b"JFIF\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xEE, b"Adobe"),
];

pub(super) struct Walker {
    limits: Limits,
    size: Option<ImageSize>,
    begun: Begun,
    /// What becomes of bytes before the next marker: picture data inside a scan, rubbish elsewhere.
    between: Fate,
    /// How many bytes of the field stand before the marker's code: none where fill bytes went before.
    code_at: usize,
    orientation: Option<Orientation>,
}

#[derive(PartialEq, Eq)]
enum Begun {
    Nothing,
    Image,
    Scans,
}

impl Walker {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            begun: Begun::Nothing,
            between: Fate::Drop,
            code_at: 1,
            orientation: None,
        }
    }

    /// A marker with a length and what belongs to it. `segment` begins with the length, once that is there.
    fn segment(&mut self, code: u8, field: &[u8]) -> Result<Step, InvalidImage> {
        let at = self.code_at + 1;
        let Some(segment) = field.get(at..).filter(|segment| segment.len() >= 2) else {
            return Ok(Step::More(at + 2));
        };
        let length = usize::from(u16::from_be_bytes(array(segment, 0)?));
        let wanted = length.min(wanted_bytes(code, segment));
        if length < 2 {
            return Err(InvalidImage::Damaged);
        }
        if segment.len() < wanted {
            return Ok(Step::More(at + wanted));
        }
        self.between = Fate::Drop;
        let body = (length - segment.len()) as u64;
        let then = Then::Marker(Fate::Drop);
        match code {
            0xC4 | 0xC8 | 0xCC | 0xDB..=0xDF => Ok(Step::Keep { body, then }),
            0xC0..=0xCF => {
                self.frame(segment)?;
                Ok(Step::Keep { body, then })
            }
            0xDA if self.size.is_some() => {
                self.begun = Begun::Scans;
                self.between = Fate::Keep;
                Ok(Step::Keep {
                    body,
                    then: Then::Marker(Fate::Keep),
                })
            }
            0xE1 => Ok(self.exif(segment, body)),
            0xE0..=0xFE if is_kept(code, segment) => Ok(Step::Keep { body, then }),
            0xE0..=0xFE => Ok(Step::Drop { body, then }),
            _ => Err(InvalidImage::Damaged),
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Result<(), InvalidImage> {
        let size = ImageSize {
            height: u16::from_be_bytes(array(segment, 3)?).into(),
            width: u16::from_be_bytes(array(segment, 5)?).into(),
        };
        self.limits.check(size)?;
        match self.size.replace(size) {
            None => Ok(()),
            Some(_) => Err(InvalidImage::Damaged),
        }
    }

    /// Without its orientation a photograph would lie on its side: the first that is found stays.
    fn exif(&mut self, segment: &[u8], body: u64) -> Step {
        let then = Then::Marker(Fate::Drop);
        let orientation = segment[2..]
            .strip_prefix(EXIF)
            .filter(|_| self.orientation.is_none())
            .and_then(Orientation::from_exif_chunk)
            .filter(|orientation| *orientation != Orientation::NoTransforms);
        match orientation {
            None => Step::Drop { body, then },
            Some(orientation) => {
                self.orientation = Some(orientation);
                let field = orientation_segment(orientation);
                Step::Replace { field, body, then }
            }
        }
    }
}

impl Walk for Walker {
    fn first_field(&self) -> usize {
        2
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let [code] = array(field, self.code_at)?;
        let keep = |then| Ok(Step::Keep { body: 0, then });
        let step = match (code, &self.begun) {
            (0xD8, Begun::Nothing) => {
                self.begun = Begun::Image;
                keep(Then::Marker(Fate::Drop))
            }
            // Any number of fill bytes may stand before a marker. They are passed one by one, so as to
            // hold none of them, and whatever then becomes of that marker, they may stand before the next.
            (0xFF, _) => {
                self.code_at = 0;
                return keep(Then::Field(1));
            }
            (0x00 | 0x01 | 0xD0..=0xD7, _) => match self.between {
                Fate::Keep => keep(Then::Marker(Fate::Keep)),
                Fate::Drop | Fate::Blank => Ok(Step::Drop {
                    body: 0,
                    then: Then::Marker(Fate::Drop),
                }),
            },
            (0xD9, Begun::Scans) => keep(Then::End),
            (0xD8 | 0xD9, _) => Err(InvalidImage::Damaged),
            _ => self.segment(code, field),
        };
        if !matches!(step, Ok(Step::More(_))) {
            self.code_at = 1;
        }
        step
    }

    fn size(&self) -> Option<ImageSize> {
        self.size
    }
}

/// How much of a segment must be seen to judge it, its length included.
fn wanted_bytes(code: u8, segment: &[u8]) -> usize {
    match code {
        0xC0..=0xCF => 7,
        0xE1 if segment[2..].starts_with(EXIF) => usize::MAX,
        0xE1 => 2 + EXIF.len(),
        0xE0 | 0xE2..=0xEF => 2 + b"ICC_PROFILE\0".len(),
        _ => 2,
    }
}

fn is_kept(code: u8, segment: &[u8]) -> bool {
    KEPT.iter()
        .any(|(kept, begin)| *kept == code && segment[2..].starts_with(begin))
}

/// EXIF with the orientation and nothing else, big-endian: one directory at offset 8 with one SHORT in it.
fn orientation_segment(orientation: Orientation) -> Bytes {
    let mut segment = Vec::with_capacity(36);
    segment.extend_from_slice(b"\xFF\xE1\x00\x22");
    segment.extend_from_slice(EXIF);
    segment.extend_from_slice(b"MM\x00\x2A\x00\x00\x00\x08\x00\x01");
    segment.extend_from_slice(b"\x01\x12\x00\x03\x00\x00\x00\x01\x00");
    segment.push(orientation.to_exif());
    segment.extend_from_slice(b"\x00\x00\x00\x00\x00\x00");
    segment.into()
}
