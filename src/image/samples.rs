//! Small images of every format, with all metadata they can carry, for the filter's tests.

use std::sync::LazyLock;

use ::image::{
    Delay, DynamicImage, Frame, ImageEncoder, RgbImage, RgbaImage,
    codecs::{
        gif::{GifEncoder, Repeat},
        jpeg::JpegEncoder,
        png::PngEncoder,
        webp::WebPEncoder,
    },
};
use bytes::Bytes;

use super::{Filter, ImageInfo, InvalidImage, Limits, Metadata};

/// Text that the output of a stripping filter must not contain.
pub(super) const SECRET: &[u8] = b"a secret prompt";

/// Larger than every sample.
pub(super) const LIMITS: Limits = Limits {
    side_px_max: 16_384,
    pixels_max: 50_000_000,
};

/// 16x16 pixels in ten scans, each with its own tables.
const PROGRESSIVE_JPEG: &str = "\
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6j\
    q62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk\
    pKSkpKSkpKT/wgARCAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAwT/xAAVAQEBAAAAAAAAAAAAAAAAAAAAA//a\
    AAwDAQACEAMQAAABjZnk/8QAFhAAAwAAAAAAAAAAAAAAAAAAAAEC/9oACAEBAAEFAlIpFIpP/8QAFREBAQAAAAAAAAAAAAAAAAAA\
    AwD/2gAIAQMBAT8BNL//xAAVEQEBAAAAAAAAAAAAAAAAAAARAP/aAAgBAgEBPwFb/8QAFBABAAAAAAAAAAAAAAAAAAAAIP/aAAgB\
    AQAGPwIf/8QAFBABAAAAAAAAAAAAAAAAAAAAIP/aAAgBAQABPyEDf//aAAwDAQACAAMAAAAQ3//EABQRAQAAAAAAAAAAAAAAAAAA\
    AAD/2gAIAQMBAT8Qf//EABURAQEAAAAAAAAAAAAAAAAAAAAB/9oACAECAQE/EIP/xAAVEAEBAAAAAAAAAAAAAAAAAAAAYf/aAAgB\
    AQABPxCaSKD/2Q==";
/// 16x16 pixels, lossy.
const LOSSY_WEBP: &str = "\
    UklGRkIAAABXRUJQVlA4IDYAAACwAQCdASoQABAABABoJbACdAEOtOvAAP70m+eva8QE4TAxcrkeU383z/6eoz+XHm+PRWPOQAA=";
/// Two frames of 16x16 pixels, lossy.
const ANIMATED_WEBP: &str = "\
    UklGRvQAAABXRUJQVlA4WAoAAAACAAAADwAADwAAQU5JTQYAAAAAAAAAAABBTk1GYAAAAAAAAAAAAA8AAA8AADIAAAJWUDggSAAA\
    AFABAJ0BKhAAEAAEAGglsAAEdAAA/tJ/9V//qwr/6f5//INl/tuGSb4NkUDHLRia5+iKBk/qVLm/GwMFg3tgflx5vj0VjzkAAEFO\
    TUZgAAAAAAAAAAAADwAADwAAMgAAAFZQOCBIAAAAVAEAnQEqEAAQAAAAaCWwAAR0AAD+0n//tf/0MH/x+Z//SXoeszysBdAymWXy\
    h2ZZxiYXf/wbKpmX9X8//xi8vocPhGRGCAAA";

/// All samples, by name.
pub(super) static ALL: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    vec![
        ("png", png()),
        ("jpeg", jpeg()),
        ("progressive jpeg", progressive_jpeg()),
        ("webp", webp()),
        ("lossy webp", lossy_webp()),
        ("animated webp", animated_webp()),
        ("gif", gif()),
    ]
});

/// The output for one image given in these pieces.
pub(super) fn filter<'a>(
    policy: Metadata,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(Vec<u8>, ImageInfo), InvalidImage> {
    let mut filter = Filter::new(policy, LIMITS);
    let mut out = Vec::new();
    for piece in pieces {
        filter.push(Bytes::copy_from_slice(piece), &mut out)?;
    }
    let early = filter.info();
    let info = filter.finish()?;
    assert_eq!(early, Some(info));
    Ok((out.concat(), info))
}

/// The image without its metadata.
pub(super) fn strip(image: &[u8]) -> Vec<u8> {
    let (stripped, _) = filter(Metadata::Strip, [image]).unwrap();
    stripped
}

/// Whether `part` is somewhere in the bytes.
pub(super) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}

/// The decoded pixels.
pub(super) fn pixels(image: &[u8]) -> RgbaImage {
    ::image::load_from_memory(image).unwrap().to_rgba8()
}

/// With texts, EXIF, a time and an unknown chunk, and with a resolution, which is kept.
pub(super) fn png() -> Vec<u8> {
    let mut image = Vec::new();
    let mut encoder = PngEncoder::new(&mut image);
    encoder.set_exif_metadata(exif(6)).unwrap();
    scene().write_with_encoder(encoder).unwrap();
    let chunks = [
        png_chunk(*b"tEXt", &[b"parameters\0", SECRET].concat()),
        png_chunk(*b"pHYs", &[0, 0, 0, 1, 0, 0, 0, 1, 0]),
        png_chunk(*b"zTXt", SECRET),
        png_chunk(*b"iTXt", SECRET),
        png_chunk(*b"tIME", &[7, 232, 1, 1, 0, 0, 0]),
        png_chunk(*b"prVt", SECRET),
    ];
    image.splice(33..33, chunks.concat());
    image
}

/// A chunk with its length and checksum.
pub(super) fn png_chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let named = [&name, data].concat();
    let checksum = crc32fast::hash(&named).to_be_bytes();
    [&length[..], &named, &checksum].concat()
}

/// Rotated, with EXIF, XMP, a comment, and a second image after its end.
pub(super) fn jpeg() -> Vec<u8> {
    let mut image = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut image, 50);
    encoder.set_exif_metadata(exif(6)).unwrap();
    encoder.set_icc_profile(vec![7; 100]).unwrap();
    scene().write_with_encoder(encoder).unwrap();
    with_jpeg_segments(image)
}

/// Sixteen pixels square, in ten scans, with the metadata of [`jpeg`].
pub(super) fn progressive_jpeg() -> Vec<u8> {
    with_jpeg_segments(decoded(PROGRESSIVE_JPEG))
}

fn with_jpeg_segments(mut image: Vec<u8>) -> Vec<u8> {
    let segments = [
        jpeg_segment(0xE1, &[b"http://ns.adobe.com/xap/1.0/\0", SECRET].concat()),
        jpeg_segment(0xFE, SECRET),
        jpeg_segment(0xE2, &[b"MPF\0", SECRET].concat()),
        jpeg_segment(0xED, SECRET),
        jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
    ];
    image.splice(2..2, segments.concat());
    image
}

/// A segment with its marker and length.
pub(super) fn jpeg_segment(code: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len() + 2).unwrap().to_be_bytes();
    [&[0xFF, code], &length[..], data].concat()
}

/// Lossless, rotated, with EXIF and XMP.
pub(super) fn webp() -> Vec<u8> {
    let mut image = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut image);
    encoder.set_exif_metadata(exif(6)).unwrap();
    scene().write_with_encoder(encoder).unwrap();
    with_webp_chunk(image, *b"XMP ", SECRET)
}

/// An image and nothing else.
pub(super) fn lossy_webp() -> Vec<u8> {
    decoded(LOSSY_WEBP)
}

/// Two frames, with a chunk that no standard defines.
pub(super) fn animated_webp() -> Vec<u8> {
    with_webp_chunk(decoded(ANIMATED_WEBP), *b"prVt", SECRET)
}

/// The image with one more chunk at its end, and the length in its header corrected.
pub(super) fn with_webp_chunk(mut image: Vec<u8>, name: [u8; 4], data: &[u8]) -> Vec<u8> {
    image.extend(name);
    image.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    image.extend(data);
    image.extend(vec![0; data.len() % 2]);
    let length = u32::try_from(image.len() - 8).unwrap();
    image[4..8].copy_from_slice(&length.to_le_bytes());
    image
}

/// Two frames, with comments, XMP and a text before, between and after them.
pub(super) fn gif() -> Vec<u8> {
    let mut image = Vec::new();
    let mut encoder = GifEncoder::new(&mut image);
    encoder.set_repeat(Repeat::Infinite).unwrap();
    for frame in [scene(), scene().rotate90()] {
        let delay = Delay::from_numer_denom_ms(100, 1);
        encoder
            .encode_frame(Frame::from_parts(frame.to_rgba8(), 0, 0, delay))
            .unwrap();
    }
    drop(encoder);
    let comment = gif_extension(0xFE, &[SECRET, &[b'x'; 240]]);
    let xmp = gif_extension(0xFF, &[b"XMP DataXMP", SECRET]);
    let odd = gif_extension(0xFF, &[b"short", SECRET]);
    let trailer = image.len() - 1;
    image.splice(trailer..trailer, [&comment[..], &xmp].concat());
    let loops = memchr::memmem::find(&image, b"\x21\xFF\x0BNETSCAPE2.0").unwrap();
    image.splice(loops..loops, [comment, xmp, odd].concat());
    image
}

/// An extension made of these blocks.
pub(super) fn gif_extension(label: u8, blocks: &[&[u8]]) -> Vec<u8> {
    let mut extension = vec![0x21, label];
    for block in blocks {
        extension.push(u8::try_from(block.len()).unwrap());
        extension.extend_from_slice(block);
    }
    extension.push(0);
    extension
}

/// A little-endian EXIF with an orientation, a camera name and a field for a secret.
pub(super) fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"II\x2A\0\x08\0\0\0\x02\0".to_vec();
    exif.extend(b"\x0F\x01\x02\0\x10\0\0\0\x26\0\0\0");
    exif.extend(b"\x12\x01\x03\0\x01\0\0\0");
    exif.extend([orientation, 0, 0, 0]);
    exif.extend([0; 4]);
    exif.extend(SECRET);
    exif.push(0);
    exif
}

fn scene() -> DynamicImage {
    let mut random = 1_u32;
    RgbImage::from_fn(24, 24, |_, _| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [red, green, blue, _] = random.to_be_bytes();
        ::image::Rgb([red, green, blue])
    })
    .into()
}

fn decoded(base64: &str) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(base64).unwrap()
}
