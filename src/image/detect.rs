//! Detects a file's type from its first bytes, regardless of its name and declared type.

use super::{Format, InvalidImage};

/// Rejected formats are identified from this many bytes.
pub(super) const HEAD_BYTES_MAX: usize = 4096;

const OCTET_STREAM: &str = "application/octet-stream";
const SIGNATURES: [(&[u8], Format); 4] = [
    (b"\xFF\xD8\xFF", Format::Jpeg),
    (b"\x89PNG\r\n\x1A\n", Format::Png),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
];

impl Format {
    /// `head` is the start of the file: 4 KiB, or all of it.
    pub fn detect(head: &[u8]) -> Result<Self, InvalidImage> {
        known(head).ok_or_else(|| unknown(head))
    }
}

/// The format, if `head` contains a complete signature.
pub(super) fn known(head: &[u8]) -> Option<Format> {
    SIGNATURES
        .iter()
        .find(|(signature, _)| head.starts_with(signature))
        .map(|(_, format)| *format)
        .or_else(|| is_webp(head).then_some(Format::Webp))
}

/// The error for a file without a known signature: truncated inside one, or of another type.
pub(super) fn unknown(head: &[u8]) -> InvalidImage {
    let head = &head[..head.len().min(HEAD_BYTES_MAX)];
    let cut_off = SIGNATURES
        .iter()
        .any(|(signature, _)| signature.starts_with(head));
    let cut_off_webp = head.len() < 12 && b"RIFF".starts_with(&head[..head.len().min(4)]);
    let detected = media_type(head);
    let ours = [Format::Jpeg, Format::Png, Format::Webp, Format::Gif]
        .iter()
        .any(|format| format.content_type() == detected);
    if cut_off || cut_off_webp || ours {
        return InvalidImage::Damaged;
    }
    InvalidImage::Type {
        detected: detected.to_owned(),
    }
}

fn is_webp(head: &[u8]) -> bool {
    head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP")
}

fn media_type(head: &[u8]) -> &'static str {
    markup(head)
        .or_else(|| infer::get(head).map(|kind| kind.mime_type()))
        .or_else(|| isobmff(head))
        .or_else(|| is_tiff(head).then_some("image/tiff"))
        .unwrap_or(OCTET_STREAM)
}

/// Markup has no signature: it begins with a bracket, and HTML may contain SVG but not the other way round.
fn markup(head: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if !text.starts_with('<') {
        None
    } else if text.starts_with("<!doctype html") || text.starts_with("<html") {
        Some("text/html")
    } else if text.contains("<svg") {
        Some("image/svg+xml")
    } else if text.starts_with("<?xml") {
        Some("text/xml")
    } else {
        text.contains("<html").then_some("text/html")
    }
}

/// The HEIF family by its major brand; `infer` needs the whole list of brands.
fn isobmff(head: &[u8]) -> Option<&'static str> {
    if head.get(4..8) != Some(b"ftyp") {
        return None;
    }
    match head.get(8..12)? {
        b"avif" | b"avis" => Some("image/avif"),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
            Some("image/heif")
        }
        _ => None,
    }
}

/// `infer` reads further and mistakes some for another type.
fn is_tiff(head: &[u8]) -> bool {
    head.starts_with(b"II*\0") || head.starts_with(b"MM\0*")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detected(head: &[u8]) -> String {
        match Format::detect(head) {
            Ok(format) => format!("{format:?}"),
            Err(InvalidImage::Type { detected }) => detected,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_four_formats_by_their_signatures() {
        assert_eq!(detected(b"\xFF\xD8\xFF\xDB"), "Jpeg");
        assert_eq!(detected(b"\x89PNG\r\n\x1A\n...."), "Png");
        assert_eq!(detected(b"GIF87a"), "Gif");
        assert_eq!(detected(b"GIF89a/*js*/"), "Gif");
        assert_eq!(detected(b"RIFF\0\0\0\0WEBPVP8 "), "Webp");
    }

    #[test]
    fn others_are_named() {
        for (head, expected) in [
            (&b"%PDF-1.7\n"[..], "application/pdf"),
            (b"BM\x36\0\0\0\0\0\0\0", "image/bmp"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heif"),
            (b"\0\0\0\x20ftypheic\0\0\0\0", "image/heif"),
            (b"\0\0\0\x20ftypmif1\0\0\0\0", "image/heif"),
            (b"\0\0\0\x20ftypavif", "image/avif"),
            (b"\0\0\0\x14ftypmif1\0\0\0\0avif", "image/avif"),
            (b"II*\0\x08\0\0\0", "image/tiff"),
            (b"MM\0*\0\0\0\x08CR", "image/tiff"),
            (
                b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                "image/svg+xml",
            ),
            (
                b"\xEF\xBB\xBF \n<?xml version='1.0'?><!-- x --><SVG/>",
                "image/svg+xml",
            ),
            (b"<?xml version='1.0'?><feed/>", "text/xml"),
            (b"<!DOCTYPE html><svg/>", "text/html"),
            (b" <HTML><body>", "text/html"),
            (b"<!-- x --><html>", "text/html"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "audio/x-wav"),
            (b"PK\x03\x04\x14\0\0\0", "application/zip"),
            (b"hello, world", "application/octet-stream"),
            (b"\0", "application/octet-stream"),
        ] {
            assert_eq!(
                detected(head),
                expected,
                "{:?}",
                head.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn what_stops_inside_a_signature_or_bends_one_is_damaged() {
        for head in [
            &b""[..],
            b"G",
            b"GIF8",
            b"\xFF\xD8",
            b"\x89PNG\r\n",
            b"RI",
            b"RIFF\x24\0\0\0",
            b"RIFF\x24\0\0\0WEB",
            b"GIF88a....",
            b"\x89PNG\n\x1A\n....",
        ] {
            assert_eq!(
                detected(head),
                "the image is damaged or cut off",
                "{head:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut head in proptest::collection::vec(any::<u8>(), 0..200), pick in 0_usize..9) {
            let start = [
                &b""[..], b"PK\x03\x04", b"\0\0\0\x20ftyp", b"II*\0", b"<", b"RIFF", b"\xD0\xCF\x11\xE0",
                b"MZ", b"\x7fELF",
            ][pick];
            head.splice(0..0, start.iter().copied());
            let _ = Format::detect(&head);
        }
    }
}
