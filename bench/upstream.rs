//! A fake upstream with OpenAI's Images API and precomputed answers: it costs almost nothing, so the gateway is what is
//! measured.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64_simd::STANDARD;
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use tokio::{net::TcpListener, task::JoinSet};

use super::wire::Connection;

/// How long the slow model takes, for the measurement of waiting clients.
pub(super) const SLOW: Duration = Duration::from_secs(5);
/// How long the model takes whose large images all come at once.
pub(super) const BURST: Duration = Duration::from_millis(500);
/// The side of the large image: 1.5 MB of noise.
const LARGE_SIDE_PX: u32 = 707;
const TINY_PNG: &[u8] = b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// Serves until it is dropped. The path selects the answer:
/// `/tiny`, `/large`, `/slow` or `/burst`.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
}

struct Answers {
    tiny: Vec<u8>,
    large: Vec<u8>,
}

impl Upstream {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let answers = Arc::new(Answers {
            tiny: answer(TINY_PNG),
            large: answer(STANDARD.encode_to_string(noise(LARGE_SIDE_PX)?).as_bytes()),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, answers));
        Ok(Self {
            address,
            _serving: serving,
        })
    }
}

async fn accept(listener: TcpListener, answers: Arc<Answers>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if let Ok(connection) = Connection::new(stream) {
            connections.spawn(serve(connection, Arc::clone(&answers)));
        }
    }
}

/// Serves until the connection ends, for any reason: a client without an answer reports it.
async fn serve(mut connection: Connection, answers: Arc<Answers>) {
    while let Ok(Some(request)) = connection.receive().await {
        let model = request.first_line.split('/').nth(1);
        match model {
            Some("slow") => tokio::time::sleep(SLOW).await,
            Some("burst") => tokio::time::sleep(BURST).await,
            _ => {}
        }
        let answer = match model {
            Some("large" | "burst") => &answers.large,
            _ => &answers.tiny,
        };
        if connection.send(answer).await.is_err() {
            break;
        }
    }
}

fn answer(encoded: &[u8]) -> Vec<u8> {
    let body = [
        br#"{"created":1700000000,"data":[{"b64_json":""#,
        encoded,
        br#""}]}"#,
    ]
    .concat();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// A PNG that does not compress: three bytes per pixel.
pub(super) fn noise(side_px: u32) -> anyhow::Result<Vec<u8>> {
    let mut state = 0x9E37_79B9_u32;
    let bytes: Vec<u8> = (0..side_px * side_px * 3)
        .map(|_| {
            // Xorshift: not random, but incompressible in practice.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect();
    let mut png = Vec::new();
    PngEncoder::new_with_quality(
        &mut png,
        CompressionType::Uncompressed,
        FilterType::NoFilter,
    )
    .write_image(&bytes, side_px, side_px, ExtendedColorType::Rgb8)?;
    Ok(png)
}
