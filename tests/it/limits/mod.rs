//! What one request and one account may cost the gateway: memory, rows and storage.

mod memory;
mod rows;
mod shares;
mod stored;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::caller::Caller;

/// A valid request with other fields added.
fn asked(fields: Value) -> Value {
    let mut body = json!({"model": "gpt-image-2", "prompt": "a cat"});
    let Value::Object(fields) = fields else {
        panic!("{fields}")
    };
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// A request whose head is sent, and whose body follows.
struct Sending(TcpStream);

impl Sending {
    async fn begin(caller: &Caller, content_type: &str, length: usize) -> Self {
        let address = caller.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/images/generations?async=1 HTTP/1.1\r\nhost: {address}\r\n\
             authorization: Bearer {}\r\ncontent-type: {content_type}\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n",
            caller.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Everything that is answered until the connection is closed.
    async fn answer(mut self) -> String {
        let mut answer = Vec::new();
        let reading = self.0.read_to_end(&mut answer);
        let read = tokio::time::timeout(std::time::Duration::from_secs(20), reading).await;
        assert!(read.is_ok(), "no answer within 20 s");
        String::from_utf8(answer).unwrap()
    }
}
