//! The part of HTTP/1.1 that a load generator and a fake upstream need: keep-alive connections, and bodies of a known
//! length that are counted and discarded.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

const BUFFER_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How much of a body is kept for inspection.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// A request or an answer.
pub(super) struct Message {
    /// `POST /path HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub(super) first_line: String,
    /// The beginning of its body.
    pub(super) body: Vec<u8>,
}

/// One end of a keep-alive connection.
pub(super) struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects to an address.
    pub(super) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Self::new(TcpStream::connect(address).await?)
    }

    pub(super) fn new(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(BUFFER_BYTES, stream)))
    }

    /// Sends a complete message.
    pub(super) async fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        Ok(self.0.write_all(message).await?)
    }

    /// `None`: the other side has closed the connection.
    pub(super) async fn receive(&mut self) -> anyhow::Result<Option<Message>> {
        let Some(head) = self.head().await? else {
            return Ok(None);
        };
        let mut lines = head.lines();
        let first_line = lines.next().unwrap_or_default().to_owned();
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Ok(0), |(_, value)| value.trim().parse())
            .context("a content-length is not a number")?;
        let body = self.body(length).await?;
        Ok(Some(Message { first_line, body }))
    }

    async fn head(&mut self) -> anyhow::Result<Option<String>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head).await? == 0 {
                ensure!(head.is_empty(), "a connection closed within a head");
                return Ok(None);
            }
            ensure!(head.len() < HEAD_BYTES_MAX, "a head is too long");
        }
        Ok(Some(String::from_utf8(head)?))
    }

    async fn body(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        let mut kept = Vec::new();
        let mut left = length;
        while left > 0 {
            let piece = self.0.fill_buf().await?;
            if piece.is_empty() {
                bail!("a connection closed {left} bytes before the end of a body");
            }
            let got = piece.len().min(left);
            let wanted = got.min(KEPT_BYTES_MAX - kept.len());
            kept.extend_from_slice(&piece[..wanted]);
            self.0.consume(got);
            left -= got;
        }
        Ok(kept)
    }
}

/// A request, ready to be sent repeatedly.
pub(super) fn request(line: &str, key: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
