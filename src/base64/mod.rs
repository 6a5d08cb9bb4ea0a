//! Base64 in pieces: text with images in it that is encoded while it is sent, and images that are decoded while
//! they arrive. No image is ever held whole.

mod decode;
mod encode;

pub use decode::{Decoder, InvalidBase64, LastBits, PIECE_BYTES};
pub use encode::StreamedText;
