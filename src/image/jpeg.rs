//! Parses a JPEG, marker by marker, through all its scans. Sources: ITU-T T.81 annex B, JFIF 1.02, Exif 2.32.

use ::image::metadata::Orientation;
use bytes::Bytes;

use super::{
    ImageSize, InvalidImage, Limits,
    parse::{Action, FormatParser, Step, Then, array},
};

const EXIF: &[u8] = b"Exif\0\0";

/// Application segments that affect the visible image, by their first bytes.
const KEPT: [(u8, &[u8]); 3] = [
    (0xE0, b"JFIF\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xEE, b"Adobe"),
];

/// The state of parsing one file.
pub(super) struct Parser {
    limits: Limits,
    size: Option<ImageSize>,
    begun: Begun,
    /// The action for bytes before the next marker: image data inside a scan, garbage elsewhere.
    between: Action,
    /// Bytes of the field before the marker's code: none if fill bytes preceded it.
    code_at: usize,
    orientation: Option<Orientation>,
}

#[derive(PartialEq, Eq)]
enum Begun {
    Nothing,
    Image,
    Scans,
}

impl Parser {
    /// At the start of a file. Larger images are rejected as soon as their size is known.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: None,
            begun: Begun::Nothing,
            between: Action::Drop,
            code_at: 1,
            orientation: None,
        }
    }

    /// A marker with a length and its data. `segment` begins with the length, once it has arrived.
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
        self.between = Action::Drop;
        let body = (length - segment.len()) as u64;
        let then = Then::Marker(Action::Drop);
        match code {
            0xC4 | 0xC8 | 0xCC | 0xDB..=0xDF => Ok(Step::Keep { body, then }),
            0xC0..=0xCF => {
                self.frame(segment)?;
                Ok(Step::Keep { body, then })
            }
            0xDA if self.size.is_some() => {
                self.begun = Begun::Scans;
                self.between = Action::Keep;
                Ok(Step::Keep {
                    body,
                    then: Then::Marker(Action::Keep),
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

    /// Without its orientation a photograph would appear rotated. The first orientation found is kept.
    fn exif(&mut self, segment: &[u8], body: u64) -> Step {
        let then = Then::Marker(Action::Drop);
        let orientation = segment[2..]
            .strip_prefix(EXIF)
            .filter(|_| self.orientation.is_none())
            .and_then(Orientation::from_exif_chunk)
            .filter(|orientation| *orientation != Orientation::NoTransforms);
        match orientation {
            None => Step::Drop { body, then },
            Some(orientation) => {
                self.orientation = Some(orientation);
                // A fill byte has passed already as the first byte of the marker.
                let field = orientation_segment(orientation).slice(1 - self.code_at..);
                Step::Replace { field, body, then }
            }
        }
    }
}

impl FormatParser for Parser {
    fn first_field(&self) -> usize {
        2
    }

    fn step(&mut self, field: &[u8]) -> Result<Step, InvalidImage> {
        let [code] = array(field, self.code_at)?;
        let keep = |then| Ok(Step::Keep { body: 0, then });
        let step = match (code, &self.begun) {
            (0xD8, Begun::Nothing) => {
                self.begun = Begun::Image;
                keep(Then::Marker(Action::Drop))
            }
            // Any number of fill bytes may precede a marker. They pass one by one, so that none is buffered. Whatever
            // happens to that marker, they may precede the next.
            (0xFF, _) => {
                self.code_at = 0;
                return keep(Then::Field(1));
            }
            (0x00 | 0x01 | 0xD0..=0xD7, _) => match self.between {
                Action::Keep => keep(Then::Marker(Action::Keep)),
                Action::Drop | Action::Blank => Ok(Step::Drop {
                    body: 0,
                    then: Then::Marker(Action::Drop),
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

/// How many bytes of a segment the parser needs, its length included.
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

/// EXIF with only the orientation, big-endian: one directory at offset 8 with one SHORT in it.
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

#[cfg(test)]
mod tests {
    use ::image::{ImageDecoder, codecs::jpeg::JpegDecoder};

    use super::*;
    use crate::image::{Metadata, samples};

    const DAMAGED: &str = "the image is damaged or cut off";

    fn outcome(image: &[u8]) -> String {
        match samples::filter(Metadata::Strip, [image]) {
            Ok((_, info)) => format!("{}x{}", info.width, info.height),
            Err(error) => error.to_string(),
        }
    }

    fn orientation(image: &[u8]) -> Orientation {
        let mut decoder = JpegDecoder::new(std::io::Cursor::new(image)).unwrap();
        decoder.orientation().unwrap()
    }

    fn frame(width: u16, height: u16) -> Vec<u8> {
        let data = [
            &[8][..],
            &height.to_be_bytes(),
            &width.to_be_bytes(),
            &[1, 1, 0x11, 0],
        ];
        samples::jpeg_segment(0xC2, &data.concat())
    }

    /// An image of these parts. No decoder would accept its data.
    fn image(parts: &[&[u8]]) -> Vec<u8> {
        [b"\xFF\xD8", &parts.concat()[..], b"\xFF\xD9"].concat()
    }

    fn scan(data: &[u8]) -> Vec<u8> {
        [&samples::jpeg_segment(0xDA, &[1, 1, 0, 0, 63, 0]), data].concat()
    }

    #[test]
    fn the_orientation_and_the_colours_stay_without_the_rest() {
        let stripped = samples::strip(&samples::jpeg());
        assert_eq!(orientation(&stripped), Orientation::Rotate90);
        let mut decoder = JpegDecoder::new(std::io::Cursor::new(&stripped)).unwrap();
        assert_eq!(decoder.icc_profile().unwrap(), Some(vec![7; 100]));
        assert_eq!(
            decoder.exif_metadata().unwrap().map(|exif| exif.len()),
            Some(26)
        );
        for kept in [&b"JFIF\0"[..], b"ICC_PROFILE\0", b"Adobe"] {
            assert!(samples::contains(&stripped, kept), "{kept:?}");
        }
        for dropped in [&b"ns.adobe.com"[..], b"MPF\0", b"\xFF\xFE", b"\xFF\xED"] {
            assert!(!samples::contains(&stripped, dropped), "{dropped:?}");
        }
    }

    #[test]
    fn exif_without_a_turn_goes_whole() {
        for (value, expected) in [(0, None), (1, None), (2, Some(2)), (8, Some(8)), (9, None)] {
            let exif = [EXIF, &samples::exif(value)].concat();
            let turned = samples::jpeg_segment(0xE1, &exif);
            let again = samples::jpeg_segment(0xE1, &[EXIF, &samples::exif(3)].concat());
            let stripped = samples::strip(&image(&[&turned, &frame(1, 1), &scan(b"")]));
            let found = stripped[2..]
                .starts_with(b"\xFF\xE1")
                .then(|| stripped[2 + 29]);
            assert_eq!(found, expected);
            let twice = samples::strip(&image(&[&turned, &again, &frame(1, 1), &scan(b"")]));
            assert_eq!(twice.len(), image(&[&frame(1, 1), &scan(b"")]).len() + 36);
        }
    }

    #[test]
    fn exif_of_the_greatest_length_is_read() {
        let mut exif = [EXIF, &samples::exif(6)].concat();
        exif.resize(65_533, b'x');
        let segment = samples::jpeg_segment(0xE1, &exif);
        let image = image(&[&segment, &frame(1, 1), &scan(b"")]);
        let (stripped, _) = samples::filter(Metadata::Strip, image.chunks(1000)).unwrap();
        assert_eq!(stripped[2..38], orientation_segment(Orientation::Rotate90));
        assert!(stripped.len() < 100);
    }

    #[test]
    fn the_end_is_found_behind_all_that_looks_like_one() {
        let data = b"\xFF\x00\xD9\xFF\xD0\xFF\xD7\xFF\xFF\x00\xFF\xFF\xFF\xD3x";
        let table = samples::jpeg_segment(0xC4, b"\xFF\xD9");
        let image = image(&[&table, &frame(3, 2), &scan(data), &table, &scan(data)]);
        assert_eq!(outcome(&image), "3x2");
        assert!(samples::strip(&image) == image);
        for end in 2..image.len() {
            assert_eq!(outcome(&image[..end]), DAMAGED, "{end}");
        }
    }

    #[test]
    fn fill_bytes_and_rubbish_between_segments_do_no_harm() {
        let comment = samples::jpeg_segment(0xFE, samples::SECRET);
        let table = samples::jpeg_segment(0xC4, b"x");
        let (frame, scan) = (frame(3, 2), scan(b"x"));
        let odd: [&[u8]; 6] = [
            &table,
            b"\0rubbish\xFF\xFF",
            &comment[1..],
            b"\xFF\0x",
            &frame,
            &scan,
        ];
        // The fill byte of the dropped segment remains and precedes the kept one.
        let plain: [&[u8]; 4] = [&table, b"\xFF\xFF", &frame, &scan];
        assert_eq!(samples::strip(&image(&odd)), image(&plain));
    }

    #[test]
    fn structure_is_checked() {
        assert_eq!(outcome(&image(&[&frame(3, 2), &scan(b"")])), "3x2");
        for (what, parts) in [
            ("nothing", vec![]),
            ("no scan", vec![frame(3, 2)]),
            ("no frame", vec![scan(b"")]),
            ("two frames", vec![frame(3, 2), frame(3, 2), scan(b"")]),
            ("no width", vec![frame(0, 2), scan(b"")]),
            (
                "two beginnings",
                vec![frame(3, 2), b"\xFF\xD8".to_vec(), scan(b"")],
            ),
            ("no such marker", vec![frame(3, 2), scan(b"\xFF\x33\0\x02")]),
            (
                "no length",
                vec![b"\xFF\xDB\0\x01".to_vec(), frame(3, 2), scan(b"")],
            ),
            (
                "short frame",
                vec![b"\xFF\xC0\0\x04\x08\0".to_vec(), scan(b"")],
            ),
        ] {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            assert_eq!(outcome(&image(&parts)), DAMAGED, "{what}");
        }
    }

    #[test]
    fn the_header_alone_tells_that_it_is_too_large() {
        insta::assert_snapshot!(
            outcome(&[b"\xFF\xD8", &frame(65_535, 65_535)[..]].concat()),
            @"the image is 65535x65535 pixels; allowed are 16384 a side and 50000000 in all"
        );
    }
}
