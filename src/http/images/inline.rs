//! Images inside a request as `data:image/*;base64,…` URLs: decoded from the body piece by piece, without a
//! copy of the whole image.

use bytes::Bytes;
use memchr::memchr;

use super::sources::Text;
use crate::base64::{Decoder, InvalidBase64, LastBits};

/// The image in a data URL, decoded piece by piece. `None` if the text is not such a URL. A piece is `None` if it
/// is not valid base64.
///
/// Skips whitespace, accepts missing padding, and reads both base64 alphabets, as the lenient decoders of other
/// gateways do.
pub(super) fn pieces(
    url: &Text,
) -> Option<impl Iterator<Item = Option<Bytes>> + Send + Unpin + use<>> {
    let (head, data) = url.split_data_url()?;
    let head = head.to_ascii_lowercase();
    let is_image = head.starts_with("data:image/") && head.ends_with(";base64");
    is_image.then(|| Pieces {
        data,
        at: 0,
        decoder: Decoder::default(),
    })
}

struct Pieces {
    data: Text,
    /// The read position.
    at: usize,
    decoder: Decoder,
}

impl Iterator for Pieces {
    type Item = Option<Bytes>;

    fn next(&mut self) -> Option<Option<Bytes>> {
        match self.decode_piece() {
            Ok(()) => self.decoder.take().map(Some),
            Err(InvalidBase64) => Some(None),
        }
    }
}

impl Pieces {
    /// Decodes until a piece is full or the text ends.
    fn decode_piece(&mut self) -> Result<(), InvalidBase64> {
        while !self.decoder.is_full() {
            let left = &self.data.bytes()[self.at..];
            if left.is_empty() {
                return self.decoder.end(LastBits::Zero);
            }
            let run = &left[..left.len().min(self.decoder.capacity_chars())];
            let escape = if self.data.is_escaped {
                memchr(b'\\', run)
            } else {
                None
            };
            if escape == Some(0) {
                self.at += 1;
                let char = self.escaped().ok_or(InvalidBase64)?;
                self.decoder.feed(&[char])?;
            } else {
                let run = &run[..escape.unwrap_or(run.len())];
                self.decoder.feed(run)?;
                self.at += run.len();
            }
        }
        Ok(())
    }

    /// Reads a JSON escape after its backslash. Many encoders write a slash as `\/`.
    fn escaped(&mut self) -> Option<u8> {
        Some(match self.byte()? {
            b'b' => b'\x08',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'f' => b'\x0c',
            b'u' => {
                let digits = self.data.bytes().get(self.at..self.at + 4)?;
                self.at += 4;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            char => char,
        })
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.data.bytes().get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::images::{sources::Source, wire::Fields};

    /// The bytes of a data URL in a JSON body.
    fn decoded(url: &str) -> Option<Vec<u8>> {
        let body = Bytes::from(format!(r#"{{"image":"{url}"}}"#));
        let fields = Fields::from_json(&body, 16).unwrap();
        let Source::Text(text) = &fields.references.list[0] else {
            unreachable!()
        };
        let pieces: Option<Vec<Bytes>> = pieces(text)?.collect();
        Some(pieces?.concat())
    }

    #[test]
    fn images_of_any_length_are_decoded_in_every_spelling() {
        for length in [1, 2, 3, 49_151, 49_152, 49_153, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|i: u32| (i * 7 % 251) as u8).collect();
            let base64 = base64_simd::STANDARD.encode_to_string(&bytes);
            let lines = base64.as_bytes().chunks(76);
            let lines: Vec<&str> = lines.map(|l| std::str::from_utf8(l).unwrap()).collect();
            for data in [
                base64.clone(),
                base64.trim_end_matches('=').to_owned(),
                base64.replace('+', "-").replace('/', "_"),
                base64.replace('/', r"\/").replace('+', r"\u002b"),
                lines.join(r"\r\n"),
            ] {
                let whole = decoded(&format!("data:image/png;base64,{data}"));
                assert_eq!(whole.as_ref(), Some(&bytes), "{length} {data:.40}");
            }
        }
        assert!(decoded(r"DATA:image\/*;charset=x;base64,AAAA").is_some());
    }

    #[test]
    fn invalid_base64_is_detected() {
        for url in [
            "data:image/png;base64,@@@@",
            "data:image/png;base64,A",
            "data:image/png;base64,AB",
            "data:image/png;base64,AA=A",
            "data:image/png;base64,====A",
            r"data:image/png;base64,AAAA\u0141",
            r"data:image/png;base64,AAA\b",
            "data:image/png,AAAA",
            "data:text/html;base64,AAAA",
            "data:",
        ] {
            assert_eq!(decoded(url), None, "{url}");
        }
    }
}
