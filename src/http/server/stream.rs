//! A connection's stream: reports bytes read and written to the [`Connection`], and closes in a way that lets
//! the peer read its last response.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::Connection;

/// How long bytes are read and discarded after the last response.
const LINGER: Duration = Duration::from_secs(1);
/// Maximum number of bytes discarded.
const LINGER_BYTES_MAX: usize = 8 << 20;
const SCRATCH_BYTES: usize = 16 * 1024;

/// A TCP stream that reports to its connection.
pub(super) struct Stream {
    tcp: TcpStream,
    connection: Arc<Connection>,
    closing: Option<Closing>,
}

/// The state after the last response was sent.
enum Closing {
    Lingering {
        until: Pin<Box<Sleep>>,
        bytes: usize,
    },
    Done,
}

impl Stream {
    /// Wraps an accepted stream.
    pub(super) fn new(tcp: TcpStream, connection: Arc<Connection>) -> Self {
        Self {
            tcp,
            connection,
            closing: None,
        }
    }

    fn record(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(bytes)) => self.connection.wrote(Some(*bytes)),
            Poll::Pending => self.connection.wrote(None),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    /// Reads until the peer closes its side too. Closing a socket with unread bytes resets the connection, and the
    /// peer loses a response that it has not read yet.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(Closing::Lingering { until, bytes }) = &mut self.closing else {
            return Poll::Ready(Ok(()));
        };
        let mut scratch = [0; SCRATCH_BYTES];
        while *bytes < LINGER_BYTES_MAX && until.as_mut().poll(context).is_pending() {
            let mut piece = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.tcp).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                break;
            }
            *bytes += piece.filled().len();
        }
        self.closing = Some(Closing::Done);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.connection.read(read);
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.record(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.tcp).poll_write_vectored(context, pieces);
        self.record(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.tcp).poll_shutdown(context))?;
            self.closing = Some(if self.connection.lingers() {
                let until = Box::pin(sleep(LINGER));
                Closing::Lingering { until, bytes: 0 }
            } else {
                Closing::Done
            });
        }
        self.poll_linger(context)
    }
}

impl Drop for Stream {
    /// Resets a stuck connection: otherwise its unsent bytes would stay in the kernel after the close.
    fn drop(&mut self) {
        if self.connection.is_stuck() {
            let reset = self.tcp.set_zero_linger();
            drop(reset);
        }
    }
}
