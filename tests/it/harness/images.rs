//! Small images of every format, and files that only look like images.

use std::io::Cursor;

use image::{
    DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbImage, RgbaImage,
    codecs::png::PngEncoder,
};

/// An image of 8x6 pixels in one of the four formats.
pub fn image(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let pixels = RgbImage::from_pixel(8, 6, image::Rgb([200, 30, 99]));
    DynamicImage::from(pixels)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

/// A PNG of 8x6 pixels.
pub fn png() -> Vec<u8> {
    image(ImageFormat::Png)
}

/// A PNG of this many bytes, most of them in a chunk that decoders skip.
pub fn png_of(bytes: usize) -> Vec<u8> {
    filled(&png(), bytes)
}

/// The width and height of an image, which must be whole.
pub fn size_of(bytes: &[u8]) -> (u32, u32) {
    let image = image::load_from_memory(bytes).unwrap();
    (image.width(), image.height())
}

/// A PNG of exactly this size; its shade of grey tells images apart.
pub fn grey(width: u32, height: u32, shade: u8) -> Vec<u8> {
    let pixels = vec![shade.wrapping_mul(24); (width * height) as usize];
    png_from(&pixels, (width, height), ExtendedColorType::L8)
}

/// A PNG that does not compress: about three bytes per pixel.
pub fn noise(width: u32, height: u32) -> Vec<u8> {
    let mut pixels = vec![0; (width * height * 3) as usize];
    rand::fill(&mut pixels[..]);
    png_from(&pixels, (width, height), ExtendedColorType::Rgb8)
}

/// A mask of 8x6 pixels and this many bytes, transparent in its left half.
pub fn mask_of(bytes: usize) -> Vec<u8> {
    let pixels = RgbaImage::from_fn(8, 6, |x, _| {
        image::Rgba([9, 9, 9, if x < 4 { 0 } else { 255 }])
    });
    filled(&png_from(&pixels, (8, 6), ExtendedColorType::Rgba8), bytes)
}

fn png_from(pixels: &[u8], (width, height): (u32, u32), color: ExtendedColorType) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(pixels, width, height, color)
        .unwrap();
    png
}

fn filled(small: &[u8], bytes: usize) -> Vec<u8> {
    let (rest, end) = small.split_at(small.len() - 12);
    let filling = vec![b'x'; bytes - small.len() - 12];
    [rest, &chunk(*b"fiLl", &filling), end].concat()
}

/// A PNG whose header claims these dimensions, with almost no data.
pub fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    let small = png();
    [&small[..8], &chunk(*b"IHDR", &header), &small[33..]].concat()
}

/// Adds a text chunk to the PNG, as generators do to store their prompt or workflow.
pub fn with_text(png: &[u8], text: &str) -> Vec<u8> {
    let (header, rest) = png.split_at(33);
    let chunk = chunk(*b"tEXt", format!("prompt\0{text}").as_bytes());
    [header, &chunk, rest].concat()
}

fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind, data].concat();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length[..], &body, &crc32fast::hash(&body).to_be_bytes()].concat()
}
