//! The fake's replies.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Response, StatusCode},
};
use futures_util::{StreamExt, stream};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Received;

/// The reply to one call.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    delay: Duration,
    gate: Option<Gate>,
    cut_at: Option<usize>,
}

/// Holds replies back; each added permit releases one.
pub type Gate = Arc<Semaphore>;

/// A PNG of exactly this size; its shade of grey tells images apart.
pub fn image(width: u32, height: u32, index: u8) -> Vec<u8> {
    let pixels = vec![index.wrapping_mul(24); (width * height) as usize];
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, width, height, ExtendedColorType::L8)
        .unwrap();
    png
}

/// A PNG that does not compress: about three bytes per pixel.
pub fn noise(width: u32, height: u32) -> Vec<u8> {
    let mut pixels = vec![0; (width * height * 3) as usize];
    rand::fill(&mut pixels[..]);
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    png
}

impl Reply {
    /// The images that were asked for.
    pub fn result(received: &Received) -> Self {
        let (width, height) = received.size().unwrap_or((16, 16));
        let count = received.n().and_then(|n| u8::try_from(n).ok()).unwrap_or(1);
        let images: Vec<_> = (0..count).map(|i| image(width, height, i)).collect();
        Self::images(&images)
    }

    /// One small image, regardless of the request.
    pub fn an_image() -> Self {
        Self::images(&[image(3, 2, 0)])
    }

    /// Images as base64, as OpenAI answers them.
    pub fn images(images: &[Vec<u8>]) -> Self {
        let data: Vec<Value> = images
            .iter()
            .map(|image| json!({"b64_json": base64_simd::STANDARD.encode_to_string(image)}))
            .collect();
        let usage = json!({"input_tokens": 8, "output_tokens": 272, "total_tokens": 280,
            "input_tokens_details": {"text_tokens": 8, "image_tokens": 0}});
        Self::json(
            200,
            &json!({"created": 1_781_599_773, "data": data, "background": "opaque",
                "output_format": "png", "quality": "medium", "usage": usage}),
        )
    }

    /// Images as links.
    pub fn links(urls: &[&str]) -> Self {
        let data: Vec<Value> = urls.iter().map(|url| json!({"url": url})).collect();
        Self::json(200, &json!({"created": 1_781_599_773, "data": data}))
    }

    /// An error in OpenAI's shape.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let kind = match (status, code) {
            (_, "moderation_blocked") => "image_generation_user_error",
            (500.., _) => "server_error",
            _ => "invalid_request_error",
        };
        Self::json(
            status,
            &json!({"error": {"message": message, "type": kind, "param": null, "code": code}}),
        )
    }

    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            ..Self::bytes("application/json", body.to_string().into_bytes())
        }
    }

    /// A body of another content type.
    pub fn bytes(content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            body: body.into(),
            delay: Duration::ZERO,
            gate: None,
            cut_at: None,
        }
    }

    /// Replaces the status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Delays the reply by this long.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Delays the reply until the gate releases it.
    pub fn held_by(mut self, gate: &Gate) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }

    /// Breaks the connection after this many bytes of the body.
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    /// The length of the body in bytes.
    pub fn length(&self) -> usize {
        self.body.len()
    }

    /// Names the parameter that an error refers to.
    pub(super) fn about(mut self, param: &str) -> Self {
        let mut body: Value = serde_json::from_slice(&self.body).unwrap();
        body["error"]["param"] = param.into();
        self.body = body.to_string().into();
        self
    }

    /// Waits as scripted, then returns the response.
    pub async fn send(self) -> Response<Body> {
        tokio::time::sleep(self.delay).await;
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        let body = match self.cut_at {
            None => Body::from(self.body),
            Some(bytes) => cut_off(self.body.slice(..bytes)),
        };
        response.body(body).unwrap()
    }
}

/// Sends `body`, then breaks the connection.
fn cut_off(body: Bytes) -> Body {
    let end = stream::once(async {
        // Buffered bytes are sent while the body is pending.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    Body::from_stream(stream::iter([Ok(body)]).chain(end))
}
