//! The fixed 503 response to a connection that cannot be admitted, not even to the reserve.

use std::{future::Future, net::Shutdown, sync::Arc, time::Duration};

use serde_json::json;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

use crate::config;

const RETRY_AFTER_S: u32 = 1;
/// Maximum number of refused connections kept open at once until they have read the response.
const LINGERING_MAX: usize = 256;
/// How long such a connection is kept open.
const LINGER: Duration = Duration::from_secs(1);
const SCRATCH_BYTES: usize = 4096;

/// The prepared response, and the limit on refused connections kept open.
pub(super) struct Refusal {
    answer: Vec<u8>,
    lingering: Arc<Semaphore>,
}

impl Refusal {
    /// Renders the response once.
    pub(super) fn new(limits: &config::Server) -> Self {
        let error = json!({
            "message": "too many connections",
            "type": "server_error",
            "code": null,
            "param": null,
            "provider": limits.provider,
        });
        let body = json!({ "error": error }).to_string();
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: {RETRY_AFTER_S}\r\n\
             content-type: application/json\r\ncache-control: no-store\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self {
            answer: (head + &body).into_bytes(),
            lingering: Arc::new(Semaphore::new(LINGERING_MAX)),
        }
    }

    /// Sends the response, possibly before the request has arrived, and closes our side of the connection. The
    /// returned future waits for the peer to read it; `None` if sending failed or too many peers are waited for.
    pub(super) fn send(&self, stream: TcpStream) -> Option<impl Future<Output = ()> + use<>> {
        let socket = SockRef::from(&stream);
        let sent = socket.send(&self.answer).is_ok() && socket.shutdown(Shutdown::Write).is_ok();
        let permit = Arc::clone(&self.lingering).try_acquire_owned().ok();
        let permit = permit.filter(|_| sent)?;
        Some(async move {
            let mut scratch = [0; SCRATCH_BYTES];
            let until_read = async {
                while stream.readable().await.is_ok() {
                    match stream.try_read(&mut scratch) {
                        Ok(0) => break,
                        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                        Ok(_) | Err(_) => {}
                    }
                }
            };
            drop(timeout(LINGER, until_read).await);
            drop(permit);
        })
    }
}
