//! Slow, silent, numerous, malformed and closed connections, driven byte by byte.

mod addresses;
mod ending;
mod framing;
mod many;
mod probes;
mod slow;
mod strangers;
mod unread;

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::caller::Caller;

const PATIENCE: Duration = Duration::from_secs(20);
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

async fn connect(url: &str) -> TcpStream {
    let address = url.trim_start_matches("http://");
    TcpStream::connect(address).await.unwrap()
}

/// A connection on which this was sent.
async fn sent(url: &str, text: &str) -> TcpStream {
    let mut stream = connect(url).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Reads until the other side closes; returns what arrived, and after which time it closed.
async fn until_closed(stream: &mut TcpStream) -> (String, Duration) {
    let (mut text, began) = (Vec::new(), Instant::now());
    let read = timeout(PATIENCE, stream.read_to_end(&mut text)).await;
    assert!(matches!(read, Ok(Ok(_))), "{read:?}");
    (String::from_utf8_lossy(&text).into_owned(), began.elapsed())
}

/// Reads one answer, to the end that its length gives.
async fn answer(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let whole = async {
        loop {
            let text = String::from_utf8_lossy(&read).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return text;
                }
            }
            let length = stream.read_buf(&mut read).await.unwrap();
            assert!(length > 0, "closed after {text:?}");
        }
    };
    timeout(PATIENCE, whole).await.unwrap()
}

/// Sends one request on its own connection, and reads until it is closed.
async fn exchange(url: &str, text: &str) -> String {
    until_closed(&mut sent(url, text).await).await.0
}

/// The head of a sync request, with a body of this length.
fn generation(caller: &Caller, length: usize) -> String {
    format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
        caller.key
    )
}

/// A complete sync request.
fn request(caller: &Caller) -> String {
    let body = r#"{"model":"gpt-image-2","prompt":"a cat"}"#;
    generation(caller, body.len()) + body
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).unwrap_or_default();
    status.parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = [0; 64];
    matches!(
        timeout(Duration::from_millis(1), stream.read(&mut rest)).await,
        Ok(Ok(0) | Err(_))
    )
}

/// Runs a future beside the test.
#[expect(clippy::disallowed_methods, reason = "it may end with the test")]
fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}
