//! Streams an image in pieces of any length without buffering it whole: parses its structure to the end, checks its
//! size, and removes its metadata if required.

use bytes::{Buf, Bytes};

use super::{
    Format, ImageInfo, InvalidImage, Limits, detect, gif, jpeg,
    parse::{Action, FormatParser, Step, Then},
    png, webp,
};

/// Source of the zero bytes for blanked fields.
static ZEROS: [u8; 4096] = [0; 4096];

/// What to do with an image's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// Every byte passes unchanged.
    Keep,
    /// Removes everything that a decoder does not need to show the image: texts, EXIF except a JPEG's orientation, XMP,
    /// thumbnails, and bytes after the image's end.
    Strip,
}

/// The state of one image. Unusable after an error.
///
/// It holds back a few of the bytes pushed: 4 KiB if it is not an image, 64 KiB of a JPEG with EXIF.
pub struct Filter {
    policy: Metadata,
    limits: Limits,
    stage: Stage,
}

enum Stage {
    /// Too few bytes so far to detect the format.
    Head(Bytes),
    Body(Format, ParserState),
}

/// The progress of a parser.
struct ParserState {
    parser: Box<dyn FormatParser>,
    policy: Metadata,
    /// The start of a field that was split between pieces.
    carry: Vec<u8>,
    action: Action,
    /// Remaining bytes with the current action, before `then`.
    body: u64,
    then: Then,
}

/// A piece in progress. Adjacent kept bytes are emitted as one slice, without copying.
struct Cursor<'a> {
    /// Bytes not emitted yet: `kept` bytes to keep, then undecided bytes.
    piece: Bytes,
    kept: usize,
    out: &'a mut Vec<Bytes>,
}

impl Filter {
    /// A filter for one image.
    pub fn new(policy: Metadata, limits: Limits) -> Self {
        Self {
            policy,
            limits,
            stage: Stage::Head(Bytes::new()),
        }
    }

    /// Takes the next piece and appends the output to `out`, as slices of the piece where possible.
    pub fn push(&mut self, piece: Bytes, out: &mut Vec<Bytes>) -> Result<(), InvalidImage> {
        match &mut self.stage {
            Stage::Head(head) => {
                let head = joined(std::mem::take(head), piece);
                match detect::known(&head) {
                    Some(format) => {
                        let mut state = ParserState::new(parser(format, self.limits), self.policy);
                        let result = state.push(head, out);
                        self.stage = Stage::Body(format, state);
                        result
                    }
                    None if head.len() < detect::HEAD_BYTES_MAX => {
                        self.stage = Stage::Head(head);
                        Ok(())
                    }
                    None => Err(detect::unknown(&head)),
                }
            }
            Stage::Body(_, state) => state.push(piece, out),
        }
    }

    /// The format, detected from the first bytes.
    pub fn format(&self) -> Option<Format> {
        match &self.stage {
            Stage::Head(_) => None,
            Stage::Body(format, _) => Some(*format),
        }
    }

    /// The format and size, once the header has passed.
    pub fn info(&self) -> Option<ImageInfo> {
        let Stage::Body(format, state) = &self.stage else {
            return None;
        };
        state.parser.size().map(|size| ImageInfo {
            format: *format,
            width: size.width,
            height: size.height,
        })
    }

    /// Ends the input. Fails unless the image is complete.
    pub fn finish(self) -> Result<ImageInfo, InvalidImage> {
        match &self.stage {
            Stage::Head(head) => Err(detect::unknown(head)),
            Stage::Body(_, state) if state.is_over() => self.info().ok_or(InvalidImage::Damaged),
            Stage::Body(..) => Err(InvalidImage::Damaged),
        }
    }
}

fn parser(format: Format, limits: Limits) -> Box<dyn FormatParser> {
    match format {
        Format::Jpeg => Box::new(jpeg::Parser::new(limits)),
        Format::Png => Box::new(png::Parser::new(limits)),
        Format::Webp => Box::new(webp::Parser::new(limits)),
        Format::Gif => Box::new(gif::Parser::new(limits)),
    }
}

impl ParserState {
    fn new(parser: Box<dyn FormatParser>, policy: Metadata) -> Self {
        Self {
            then: Then::Field(parser.first_field()),
            parser,
            policy,
            carry: Vec::new(),
            action: Action::Keep,
            body: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.body == 0 && matches!(self.then, Then::End)
    }

    fn push(&mut self, piece: Bytes, out: &mut Vec<Bytes>) -> Result<(), InvalidImage> {
        let mut cursor = Cursor {
            piece,
            kept: 0,
            out,
        };
        while !cursor.rest().is_empty() {
            if self.body > 0 {
                let here = usize::try_from(self.body).unwrap_or(usize::MAX);
                let passed = cursor.pass(self.action, here);
                self.body -= passed as u64;
                continue;
            }
            match self.then {
                Then::Field(length) => self.field(length, &mut cursor)?,
                Then::Marker(action) => {
                    let rest = cursor.rest();
                    let before = memchr::memchr(0xFF, rest).unwrap_or(rest.len());
                    cursor.pass(self.policy.over(action), before);
                    if !cursor.rest().is_empty() {
                        self.then = Then::Field(2);
                    }
                }
                Then::End => {
                    cursor.pass(self.policy.over(Action::Drop), usize::MAX);
                }
            }
        }
        cursor.flush();
        Ok(())
    }

    /// Gives the parser its next field if the piece completes it, and performs the returned step.
    fn field(&mut self, length: usize, cursor: &mut Cursor<'_>) -> Result<(), InvalidImage> {
        let in_place = self.carry.is_empty() && cursor.rest().len() >= length;
        if !in_place {
            cursor.carry_over(length.saturating_sub(self.carry.len()), &mut self.carry);
            if self.carry.len() < length {
                return Ok(());
            }
        }
        let field = if in_place {
            &cursor.rest()[..length]
        } else {
            &self.carry
        };
        let (instead, action, body, then) = match self.parser.step(field)? {
            Step::More(length) => {
                self.then = Then::Field(length);
                return Ok(());
            }
            Step::Keep { body, then } => (Bytes::new(), Action::Keep, body, then),
            Step::Drop { body, then } => (Bytes::new(), Action::Drop, body, then),
            Step::Replace { field, body, then } => (field, Action::Blank, body, then),
        };
        (self.action, self.body, self.then) = (self.policy.over(action), body, then);
        match self.action {
            Action::Keep if in_place => {
                cursor.pass(Action::Keep, length);
            }
            Action::Keep => cursor.insert(std::mem::take(&mut self.carry).into()),
            Action::Drop | Action::Blank => {
                cursor.insert(instead);
                if in_place {
                    cursor.pass(Action::Drop, length);
                }
                self.carry = Vec::new();
            }
        }
        Ok(())
    }
}

impl Metadata {
    /// The effective action for bytes to which a parser gives this action.
    fn over(self, action: Action) -> Action {
        match self {
            Self::Keep => Action::Keep,
            Self::Strip => action,
        }
    }
}

impl Cursor<'_> {
    fn rest(&self) -> &[u8] {
        &self.piece[self.kept..]
    }

    /// Passes up to `count` bytes and returns how many there were.
    fn pass(&mut self, action: Action, count: usize) -> usize {
        let count = count.min(self.rest().len());
        if action == Action::Keep {
            self.kept += count;
        } else if count > 0 {
            self.flush();
            self.piece.advance(count);
            if action == Action::Blank {
                blank(count, self.out);
            }
        }
        count
    }

    /// Moves up to `count` bytes to the carry.
    fn carry_over(&mut self, count: usize, carry: &mut Vec<u8>) {
        let count = count.min(self.rest().len());
        carry.extend_from_slice(&self.rest()[..count]);
        self.pass(Action::Drop, count);
    }

    fn insert(&mut self, bytes: Bytes) {
        self.flush();
        if !bytes.is_empty() {
            self.out.push(bytes);
        }
    }

    /// Emits the kept bytes so far.
    fn flush(&mut self) {
        if self.kept > 0 {
            self.out.push(self.piece.split_to(self.kept));
            self.kept = 0;
        }
    }
}

fn blank(mut count: usize, out: &mut Vec<Bytes>) {
    while count > 0 {
        let zeros = &ZEROS[..count.min(ZEROS.len())];
        out.push(Bytes::from_static(zeros));
        count -= zeros.len();
    }
}

/// Copies only if the head came in several pieces.
fn joined(head: Bytes, piece: Bytes) -> Bytes {
    if head.is_empty() {
        piece
    } else {
        [head, piece].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::image::samples::{self, LIMITS, SECRET};

    const POLICIES: [Metadata; 2] = [Metadata::Keep, Metadata::Strip];

    fn error(policy: Metadata, image: &[u8]) -> String {
        samples::filter(policy, [image]).unwrap_err().to_string()
    }

    #[test]
    fn keep_changes_nothing_and_strip_no_pixel() {
        for (name, image) in samples::ALL.iter() {
            let (kept, info) = samples::filter(Metadata::Keep, [&image[..]]).unwrap();
            let (stripped, same) = samples::filter(Metadata::Strip, [&image[..]]).unwrap();
            assert!(kept == *image, "{name}");
            assert_eq!(info, same, "{name}");
            let decoded = samples::pixels(image);
            assert_eq!((info.width, info.height), decoded.dimensions(), "{name}");
            assert!(samples::pixels(&stripped) == decoded, "{name}");
            assert!(!samples::contains(&stripped, SECRET), "{name}");
            assert!(samples::strip(&stripped) == stripped, "{name}");
        }
    }

    #[test]
    fn an_image_in_single_bytes_comes_out_the_same() {
        for (name, image) in samples::ALL.iter() {
            for policy in POLICIES {
                let whole = samples::filter(policy, [&image[..]]).unwrap();
                let cut = samples::filter(policy, image.chunks(1)).unwrap();
                assert!(whole == cut, "{name}, {policy:?}");
            }
        }
    }

    #[test]
    fn an_image_cut_off_anywhere_is_damaged() {
        for (name, image) in samples::ALL.iter() {
            for policy in POLICIES {
                for end in 0..image.len() {
                    assert_eq!(
                        error(policy, &image[..end]),
                        "the image is damaged or cut off",
                        "{name}, {policy:?}, {end} of {}",
                        image.len()
                    );
                }
            }
        }
    }

    #[test]
    fn what_follows_the_end_passes_only_with_all_the_rest() {
        let tails = [&b"<script>alert(1)</script>"[..], b"PK\x03\x04", b"\0"];
        for (name, image) in samples::ALL.iter() {
            for tail in tails {
                let polyglot = [image, tail].concat();
                let (kept, _) = samples::filter(Metadata::Keep, polyglot.chunks(7)).unwrap();
                assert!(kept == polyglot, "{name}");
                assert!(samples::strip(&polyglot) == samples::strip(image), "{name}");
            }
        }
    }

    #[test]
    fn other_files_are_named_from_any_number_of_pieces() {
        let pdf = [&b"%PDF-1.7"[..], &[b' '; 9000]].concat();
        for pieces in [1, 4095, 9008] {
            let error = samples::filter(Metadata::Strip, pdf.chunks(pieces)).unwrap_err();
            insta::allow_duplicates! {
                insta::assert_snapshot!(error, @"unsupported image type: application/pdf, allowed: jpeg, png, gif, webp");
            }
        }
        insta::assert_snapshot!(
            error(Metadata::Keep, b"hello"),
            @"unsupported image type: application/octet-stream, allowed: jpeg, png, gif, webp"
        );
    }

    #[test]
    fn the_payload_is_not_copied() {
        let data: Vec<u8> = (0..1_500_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut image = samples::png();
        image.splice(33..33, samples::png_chunk(*b"IDAT", &data));
        for policy in POLICIES {
            let piece = Bytes::from(image.clone());
            let inside = piece.as_ptr_range();
            let mut out = Vec::new();
            Filter::new(policy, LIMITS)
                .push(piece.clone(), &mut out)
                .unwrap();
            assert!(
                out.iter().all(|slice| inside.contains(&slice.as_ptr())),
                "{policy:?}"
            );
            assert!(out.len() < 5, "{policy:?}: {}", out.len());
        }
    }

    #[test]
    fn the_size_is_told_before_the_payload_comes() {
        let mut filter = Filter::new(Metadata::Strip, LIMITS);
        let mut out = Vec::new();
        let image = Bytes::from(samples::png());
        filter.push(image.slice(..32), &mut out).unwrap();
        assert_eq!(filter.info(), None);
        filter.push(image.slice(32..33), &mut out).unwrap();
        let info = ImageInfo {
            format: Format::Png,
            width: 24,
            height: 24,
        };
        assert_eq!(filter.info(), Some(info));
    }

    #[test]
    fn little_is_held_back() {
        for (name, image) in samples::ALL.iter() {
            let mut filter = Filter::new(Metadata::Keep, LIMITS);
            let mut out = Vec::new();
            for (count, byte) in image.iter().enumerate() {
                filter
                    .push(Bytes::copy_from_slice(&[*byte]), &mut out)
                    .unwrap();
                let passed: usize = out.iter().map(Bytes::len).sum();
                assert!(passed + 200 > count, "{name}: {passed} of {count}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_way_of_cutting_matters(
            sample in any::<Index>(),
            mut cuts in proptest::collection::vec(any::<Index>(), 0..40),
            strip in any::<bool>(),
        ) {
            let (_, image) = sample.get(&samples::ALL);
            let policy = POLICIES[usize::from(strip)];
            let whole = samples::filter(policy, [&image[..]]).unwrap();
            let mut ends: Vec<usize> = cuts.drain(..).map(|cut| cut.index(image.len())).collect();
            ends.extend([0, image.len()]);
            ends.sort_unstable();
            let pieces = ends.windows(2).map(|ends| &image[ends[0]..ends[1]]);
            prop_assert!(samples::filter(policy, pieces).unwrap() == whole);
        }

        /// Never panics, does not depend on how the input is cut, and stripping its own output changes nothing.
        #[test]
        fn no_damage_does_harm(
            sample in any::<Index>(),
            flips in proptest::collection::vec((any::<Index>(), 0_u8..8), 1..6),
            size in 1_usize..50,
        ) {
            let mut image = sample.get(&samples::ALL).1.clone();
            for (at, bit) in flips {
                let at = at.index(image.len());
                image[at] ^= 1 << bit;
            }
            for policy in POLICIES {
                let whole = samples::filter(policy, [&image[..]]);
                let cut = samples::filter(policy, image.chunks(size));
                match (whole, cut) {
                    (Ok(whole), Ok(cut)) => {
                        prop_assert!(whole == cut);
                        prop_assert!(samples::filter(policy, [&whole.0[..]]).unwrap() == whole);
                    }
                    (Err(whole), Err(cut)) => prop_assert_eq!(whole.to_string(), cut.to_string()),
                    _ => prop_assert!(false, "the cutting decides"),
                }
            }
        }

        #[test]
        fn no_bytes_behind_a_signature_panic(
            sample in any::<Index>(),
            keep in 0_usize..60,
            tail in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let (_, image) = sample.get(&samples::ALL);
            let bytes = [&image[..keep.min(image.len())], &tail].concat();
            for policy in POLICIES {
                let _ = samples::filter(policy, [&bytes[..]]);
            }
        }
    }
}
