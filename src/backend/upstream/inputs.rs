//! Sends inputs with a request: as files of a form, or as base64 in JSON. They are read only while they
//! are sent, so no image is ever held whole in memory.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use base64_simd::STANDARD;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryFutureExt, TryStreamExt,
    stream::{self, BoxStream},
};
use reqwest::{
    Body, RequestBuilder, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    multipart::Part,
};
use serde_json::Value;

use super::{BackendError, error};
use crate::{backend::Input, ids};

/// The error from reading an input, which the HTTP client's own error does not include.
#[derive(Clone, Default)]
pub(in crate::backend) struct ReadFault(Arc<Mutex<Option<io::Error>>>);

impl ReadFault {
    fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn record(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::from(kind)
    }
}

/// Sends a request whose inputs record their errors in `fault`.
pub(in crate::backend) async fn send(
    request: RequestBuilder,
    fault: &ReadFault,
) -> Result<Response, BackendError> {
    let sent = request.send().await;
    match fault.take() {
        Some(source) => Err(BackendError::Input(source)),
        None => sent.map_err(error::transport),
    }
}

/// The input as a file of a form.
pub(in crate::backend) fn file(
    input: &Input,
    stem: &str,
    fault: &ReadFault,
) -> Result<Part, BackendError> {
    let bytes = Body::wrap_stream(read(input, fault));
    Part::stream_with_length(bytes, input.length)
        .file_name(format!("{stem}.{}", input.format.extension()))
        .mime_str(input.format.content_type())
        .map_err(error::transport)
}

/// A JSON body with inputs in it, as padded base64 of the standard alphabet.
pub(in crate::backend) struct JsonBody<'a> {
    fault: &'a ReadFault,
    /// The start of every placeholder. No client can guess it, so no client can move an input.
    marker: String,
    inputs: Vec<(Input, Encoding)>,
}

/// How an input is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum Encoding {
    Base64,
    /// With a prefix such as `data:image/png;base64,`.
    DataUrl,
}

/// The digits of an input's number after the marker.
const DIGITS: usize = 4;

impl<'a> JsonBody<'a> {
    pub(in crate::backend) fn new(fault: &'a ReadFault) -> Self {
        Self {
            fault,
            marker: format!("input-{}-", ids::random_hex()),
            inputs: Vec::new(),
        }
    }

    /// Adds an input and returns its placeholder, to use as a value in the JSON, not as a field's name.
    pub(in crate::backend) fn input(&mut self, input: &Input, encoding: Encoding) -> Value {
        let placeholder = format!("{}{:0DIGITS$}", self.marker, self.inputs.len());
        self.inputs.push((input.clone(), encoding));
        Value::String(placeholder)
    }

    /// The request with `value` as its body.
    pub(in crate::backend) fn on(self, request: RequestBuilder, value: &Value) -> RequestBuilder {
        let (length, bytes) = self.stream(value);
        request
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, length)
            .body(Body::wrap_stream(bytes))
    }

    /// The body and its length.
    fn stream(&self, value: &Value) -> (u64, BoxStream<'static, io::Result<Bytes>>) {
        let text = value.to_string();
        let mut parts = text.split(&self.marker);
        let mut whole = Joined::default();
        whole.text(parts.next().unwrap_or_default().to_owned());
        for part in parts {
            let (number, text) = part.split_at(DIGITS);
            let input = number.parse().ok().and_then(|n: usize| self.inputs.get(n));
            if let Some((input, encoding)) = input {
                if *encoding == Encoding::DataUrl {
                    whole.text(format!("data:{};base64,", input.format.content_type()));
                }
                whole.length += input.length.div_ceil(3) * 4;
                whole.pieces.push(encode(read(input, self.fault)));
            }
            whole.text(text.to_owned());
        }
        (whole.length, stream::iter(whole.pieces).flatten().boxed())
    }
}

/// Streams joined one after the other, and their total length.
#[derive(Default)]
struct Joined {
    length: u64,
    pieces: Vec<BoxStream<'static, io::Result<Bytes>>>,
}

impl Joined {
    fn text(&mut self, text: String) {
        self.length += text.len() as u64;
        let piece = stream::iter([Ok(Bytes::from(text))]);
        self.pieces.push(piece.boxed());
    }
}

/// The bytes of an input. Fails if their number differs from the announced length.
fn read(input: &Input, fault: &ReadFault) -> BoxStream<'static, io::Result<Bytes>> {
    let fault = fault.clone();
    let length = input.length;
    let mut came = 0;
    let counted = (input.open)()
        .try_flatten_stream()
        .map_ok(Some)
        .chain(stream::iter([Ok(None)]))
        .map(move |piece| {
            let piece = piece?;
            came += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let ends = piece.is_none();
            if came > length || (ends && came < length) {
                let message = format!("an image of {length} bytes gave {came}");
                return Err(io::Error::other(message));
            }
            Ok(piece.unwrap_or_default())
        });
    // In an HTTP/1 body an empty piece means the end.
    let pieces = counted.try_filter(|bytes| std::future::ready(!bytes.is_empty()));
    pieces.map_err(move |error| fault.record(error)).boxed()
}

/// Encodes a stream as base64: each piece up to its last whole quad, the end with padding.
fn encode(bytes: BoxStream<'static, io::Result<Bytes>>) -> BoxStream<'static, io::Result<Bytes>> {
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
            let mut text = STANDARD.encode_to_string(&left);
            text.reserve_exact(whole.len() / 3 * 4);
            STANDARD.encode_append(whole, &mut text);
            left.clear();
            left.extend_from_slice(tail);
            Bytes::from(text)
        })
        .try_filter(|text| std::future::ready(!text.is_empty()))
        .boxed()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::image::Format;

    /// An input that arrives in pieces of the lengths `cuts` and announces `length` bytes.
    fn input(bytes: &[u8], cuts: &[usize], length: u64) -> Input {
        let mut left = bytes;
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if left.is_empty() {
                break;
            }
            let (piece, after) = left.split_at(left.len().min(*cut));
            pieces.push(Bytes::copy_from_slice(piece));
            left = after;
        }
        Input {
            format: Format::Png,
            length,
            open: Arc::new(move || {
                let pieces = pieces.clone();
                async move { Ok(stream::iter(pieces).map(Ok).boxed()) }.boxed()
            }),
            link: None,
        }
    }

    async fn sent(body: JsonBody<'_>, value: &Value) -> io::Result<(u64, Vec<u8>)> {
        let (length, stream) = body.stream(value);
        let pieces: Vec<Bytes> = stream.try_collect().await?;
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        Ok((length, pieces.concat()))
    }

    #[tokio::test]
    async fn inputs_are_base64_in_json_however_they_are_cut() {
        for (length, cuts) in [
            (0, &[1][..]),
            (1, &[1]),
            (2, &[1]),
            (3, &[2]),
            (4, &[1, 2]),
            (100, &[1]),
            (100, &[2, 5, 1]),
            (99_991, &[1, 4096, 7, 1_000]),
        ] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            let base64 = STANDARD.encode_to_string(&bytes);
            let input = input(&bytes, cuts, length as u64);
            let fault = ReadFault::default();
            let mut body = JsonBody::new(&fault);
            let value = json!({"prompt": "a \"heron\"", "image": body.input(&input, Encoding::Base64),
                "images": [body.input(&input, Encoding::DataUrl), "x"], "é": 1});
            let (announced, text) = sent(body, &value).await.unwrap();
            assert_eq!(announced, text.len() as u64);
            let expected = json!({"prompt": "a \"heron\"", "image": base64,
                "images": [format!("data:image/png;base64,{base64}"), "x"], "é": 1});
            let value: Value = serde_json::from_slice(&text).unwrap();
            assert!(value == expected, "{length} bytes in {cuts:?}");
        }
    }

    #[tokio::test]
    async fn an_input_of_another_length_is_an_error_and_recorded() {
        for said in [9, 11] {
            let fault = ReadFault::default();
            let mut body = JsonBody::new(&fault);
            let value = body.input(&input(&[7; 10], &[4], said), Encoding::Base64);
            assert!(sent(body, &value).await.is_err(), "{said}");
            let message = fault.take().unwrap().to_string();
            assert!(
                message.starts_with(&format!("an image of {said} bytes gave 1")),
                "{message}"
            );
        }
    }
}
