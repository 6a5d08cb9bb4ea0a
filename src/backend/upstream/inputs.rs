//! Sends inputs with a request: as files of a form, or as base64 in JSON. They are read only while they
//! are sent, so no image is ever held whole in memory.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

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
use crate::{backend::Input, base64::StreamedText, ids};

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
    /// Alone.
    Base64,
    /// With a prefix such as `data:image/png;base64,`.
    DataUrl,
}

/// The digits of an input's number after the marker.
const DIGITS: usize = 4;

impl<'a> JsonBody<'a> {
    /// An empty body, whose inputs will record their errors in `fault`.
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
        let whole = self.whole(value);
        request
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, whole.length())
            .body(Body::wrap_stream(whole.into_stream()))
    }

    fn whole(&self, value: &Value) -> StreamedText<io::Error> {
        let text = value.to_string();
        let mut parts = text.split(&self.marker);
        let mut whole = StreamedText::default();
        whole.text(parts.next().unwrap_or_default());
        for part in parts {
            let (number, text) = part.split_at(DIGITS);
            let input = number.parse().ok().and_then(|n: usize| self.inputs.get(n));
            if let Some((input, encoding)) = input {
                if *encoding == Encoding::DataUrl {
                    whole.text(format!("data:{};base64,", input.format.content_type()));
                }
                whole.image(input.length, read(input, self.fault));
            }
            whole.text(text);
        }
        whole
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

#[cfg(test)]
mod tests {
    use base64_simd::STANDARD;
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
        let whole = body.whole(value);
        let length = whole.length();
        let pieces: Vec<Bytes> = whole.into_stream().try_collect().await?;
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
