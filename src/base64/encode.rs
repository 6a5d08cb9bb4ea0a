//! Text of known length whose images are read, and encoded, only while it is sent.

use base64_simd::STANDARD;
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

/// Texts and, in between, images as padded base64 of the standard alphabet.
pub struct StreamedText<E> {
    length: u64,
    parts: Vec<BoxStream<'static, Result<Bytes, E>>>,
}

impl<E> Default for StreamedText<E> {
    fn default() -> Self {
        Self {
            length: 0,
            parts: Vec::new(),
        }
    }
}

impl<E: Send + 'static> StreamedText<E> {
    /// Appends a text.
    pub fn text(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.length += text.len() as u64;
        let piece = stream::iter([Ok(Bytes::from(text))]);
        self.parts.push(piece.boxed());
    }

    /// Appends an image of `length` bytes.
    pub fn image(
        &mut self,
        length: u64,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) {
        self.length += length.div_ceil(3) * 4;
        self.parts.push(encode(bytes));
    }

    /// The length in bytes, with the images as base64.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The whole text. No piece is empty: in an HTTP/1 body an empty piece would mean the end.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, E>> {
        stream::iter(self.parts)
            .flatten()
            .try_filter(|piece| std::future::ready(!piece.is_empty()))
            .boxed()
    }
}

/// Encodes a stream: each piece up to its last whole group of three bytes, the end with padding.
fn encode<E: Send + 'static>(
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> BoxStream<'static, Result<Bytes, E>> {
    let mut left: Vec<u8> = Vec::with_capacity(3);
    let ended = stream::iter([Ok(None)]);
    bytes
        .map_ok(Some)
        .chain(ended)
        .map_ok(move |piece| {
            let Some(piece) = piece else {
                return Bytes::from(STANDARD.encode_to_string(std::mem::take(&mut left)));
            };
            let (head, rest) = piece.split_at(piece.len().min((3 - left.len()) % 3));
            left.extend_from_slice(head);
            if !left.is_empty() && left.len() < 3 {
                return Bytes::new();
            }
            let (whole, tail) = rest.split_at(rest.len() / 3 * 3);
            let mut text = String::with_capacity((left.len() + whole.len()) / 3 * 4);
            STANDARD.encode_append(&left, &mut text);
            STANDARD.encode_append(whole, &mut text);
            left.clear();
            left.extend_from_slice(tail);
            Bytes::from(text)
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_encode_like_the_whole(pieces: Vec<Vec<u8>>) {
            let whole = pieces.concat();
            let expected = format!("<{}>", STANDARD.encode_to_string(&whole));
            let pieces = stream::iter(pieces).map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
            let mut text = StreamedText::default();
            text.text("<");
            text.image(whole.len() as u64, pieces);
            text.text(">");
            prop_assert_eq!(text.length(), expected.len() as u64);
            let sent: Vec<Bytes> = text.into_stream().try_collect().now_or_never().unwrap().unwrap();
            prop_assert!(sent.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(sent.concat(), expected.into_bytes());
        }
    }
}
