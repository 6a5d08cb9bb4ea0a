//! Decodes base64 that arrives in arbitrary cuts into pieces of a fixed size.
//!
//! Skips white space, accepts missing padding, and reads both alphabets. The bulk is decoded with SIMD. Unusual
//! input (white space, padding, both alphabets in one text, quads split by a cut) is decoded one character at a
//! time.

use bytes::Bytes;

/// The size of a decoded piece; a multiple of three, so that every piece ends on a quad of base64.
pub const PIECE_BYTES: usize = 48 * 1024;
/// The size of a text's first piece, also a multiple of three. It is small, so that the rest stays in its socket while the
/// receiver of the first piece waits for memory.
const FIRST_PIECE_BYTES: usize = 3 * 1024;

/// A text that is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not base64")]
pub struct InvalidBase64;

/// The bits of a text's last character that belong to no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBits {
    /// They must be zero.
    Zero,
    /// They are ignored.
    Any,
}

/// Decodes one text after another.
#[derive(Debug)]
pub struct Decoder {
    /// Decoded bytes not yet taken; the length is a multiple of three until the end.
    piece: Vec<u8>,
    /// The length of the piece when it is full.
    piece_bytes: usize,
    /// The characters of an incomplete quad, in the standard alphabet.
    quad: [u8; 4],
    quad_length: usize,
    padded: bool,
    /// Whether the last decoded run used the URL-safe alphabet.
    url_safe: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            piece: Vec::new(),
            piece_bytes: FIRST_PIECE_BYTES,
            quad: [0; 4],
            quad_length: 0,
            padded: false,
            url_safe: false,
        }
    }
}

impl Decoder {
    /// How many characters fit in the piece, at least one while the piece is not full.
    pub fn capacity_chars(&self) -> usize {
        (self.piece_bytes - self.piece.len()) / 3 * 4 - self.quad_length
    }

    /// Whether a whole piece is to be taken.
    pub fn is_full(&self) -> bool {
        self.piece.len() == self.piece_bytes
    }

    /// Takes the bytes decoded so far, if any.
    pub fn take(&mut self) -> Option<Bytes> {
        if self.is_full() {
            self.piece_bytes = PIECE_BYTES;
        }
        (!self.piece.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.piece)))
    }

    /// Decodes `text`, which is no longer than [`Self::capacity_chars`].
    pub fn feed(&mut self, text: &[u8]) -> Result<(), InvalidBase64> {
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(self.piece_bytes);
        }
        let mut text = text;
        while self.quad_length > 0
            && let Some((&character, after)) = text.split_first()
        {
            self.push(character)?;
            text = after;
        }
        let padded_quads = usize::from(text.ends_with(b"="));
        let bulk = (text.len() / 4).saturating_sub(padded_quads) * 4;
        let (bulk, tail) = text.split_at(bulk);
        if self.padded || self.decode(bulk).is_err() {
            self.push_all(bulk)?;
        }
        self.push_all(tail)
    }

    /// Ends the current base64 text: decodes its remainder and resets for the next text.
    pub fn end(&mut self, last_bits: LastBits) -> Result<(), InvalidBase64> {
        let left = &self.quad[..self.quad_length];
        let last = match last_bits {
            LastBits::Zero => base64_simd::STANDARD_NO_PAD.decode_to_vec(left),
            LastBits::Any => base64_simd::forgiving_decode_to_vec(left),
        };
        let last = last.or(Err(InvalidBase64))?;
        self.piece.extend_from_slice(&last);
        self.quad_length = 0;
        self.padded = false;
        self.url_safe = false;
        self.piece_bytes = FIRST_PIECE_BYTES;
        Ok(())
    }

    fn push_all(&mut self, text: &[u8]) -> Result<(), InvalidBase64> {
        text.iter().try_for_each(|&character| self.push(character))
    }

    fn push(&mut self, character: u8) -> Result<(), InvalidBase64> {
        let character = match character {
            space if space.is_ascii_whitespace() => return Ok(()),
            b'=' => {
                self.padded = true;
                return Ok(());
            }
            _ if self.padded => return Err(InvalidBase64),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => character,
            b'-' => b'+',
            b'_' => b'/',
            _ => return Err(InvalidBase64),
        };
        self.quad[self.quad_length] = character;
        self.quad_length += 1;
        if self.quad_length == self.quad.len() {
            self.quad_length = 0;
            return self.decode(&{ self.quad });
        }
        Ok(())
    }

    /// Decodes whole quads. If they are not all of one alphabet, it fails and changes nothing.
    fn decode(&mut self, quads: &[u8]) -> Result<(), InvalidBase64> {
        for url_safe in [self.url_safe, !self.url_safe] {
            let alphabet = if url_safe {
                base64_simd::URL_SAFE_NO_PAD
            } else {
                base64_simd::STANDARD_NO_PAD
            };
            if alphabet.decode_append(quads, &mut self.piece).is_ok() {
                self.url_safe = url_safe;
                return Ok(());
            }
        }
        Err(InvalidBase64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(cuts: &[&[u8]]) -> Result<Vec<u8>, InvalidBase64> {
        let mut pieces = Decoder::default();
        for cut in cuts {
            pieces.feed(cut)?;
        }
        pieces.end(LastBits::Any)?;
        Ok(pieces.take().map_or_else(Vec::new, Vec::from))
    }

    #[test]
    fn takes_any_cut_padding_white_space_and_alphabet() {
        assert_eq!(decode(&[b"aGVsbG8="]).unwrap(), b"hello");
        assert_eq!(decode(&[b"aGVsbG8"]).unwrap(), b"hello");
        assert_eq!(
            decode(&[b"a", b"GVs", b"bG", b"8", b"="]).unwrap(),
            b"hello"
        );
        assert_eq!(decode(&[b"aGVs\r\nbG8=\n"]).unwrap(), b"hello");
        assert_eq!(decode(&[b"\taGVs\x0cbG8 = "]).unwrap(), b"hello");
        assert_eq!(decode(&[b"-_-_"]).unwrap(), decode(&[b"+/+/"]).unwrap());
        assert_eq!(decode(&[b""]).unwrap(), b"");
    }

    #[test]
    fn rejects_invalid_base64() {
        for text in [&b"aGVs!G8="[..], b"aGVsb", b"aGVsbG8=aGVs", b"\"aGV"] {
            assert!(decode(&[text]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bits_after_the_last_byte_are_ignored_or_refused() {
        for (text, bytes) in [(&b"aB"[..], &b"h"[..]), (b"aGV", b"he")] {
            for (bits, ends) in [(LastBits::Any, true), (LastBits::Zero, false)] {
                let mut decoder = Decoder::default();
                decoder.feed(text).unwrap();
                assert_eq!(decoder.end(bits).is_ok(), ends);
                assert_eq!(decoder.take().as_deref(), ends.then_some(bytes));
            }
        }
    }

    #[test]
    fn pieces_are_never_longer_than_their_capacity() {
        let text =
            base64_simd::STANDARD
                .encode_to_string(vec![7; FIRST_PIECE_BYTES + 2 * PIECE_BYTES + 1]);
        let mut left = text.as_bytes();
        let mut pieces = Decoder::default();
        let mut lengths = Vec::new();
        while !left.is_empty() {
            let taken = left.len().min(pieces.capacity_chars()).min(1000);
            pieces.feed(&left[..taken]).unwrap();
            left = &left[taken..];
            if pieces.is_full() {
                lengths.push(pieces.take().unwrap().len());
            }
        }
        pieces.end(LastBits::Any).unwrap();
        lengths.push(pieces.take().unwrap().len());
        assert_eq!(lengths, [FIRST_PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1]);
    }
}
