//! Reads an object to its end even if the store fails for a moment: it requests the missing part again, from the point
//! where the read failed. An object that is still in memory is not requested at all.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::sleep;

use super::{Key, Storage, StorageError};

/// Maximum retries of one read, and the wait after a failure.
const RETRIES_MAX: u32 = 4;
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// An object that is being read.
pub struct SteadyRead {
    storage: Storage,
    key: Key,
    size: u64,
    at: u64,
    retries: u32,
    /// Read but not returned yet.
    ahead: Option<Bytes>,
    stream: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl Storage {
    /// Opens a whole object. A missing object is an error.
    pub async fn read_steadily(&self, key: Key) -> Result<SteadyRead, StorageError> {
        let (size, stream) = if let Some(image) = self.fresh.get(&key) {
            // The image stays until its last block is taken.
            let size = image.bytes;
            let block = move |at: usize| image.blocks.get(at).cloned().map(Ok);
            (size, stream::iter((0..).map_while(block)).boxed())
        } else {
            let opened = self.read(&key, None).await?;
            let object = opened.ok_or_else(|| StorageError::missing(&key))?;
            (object.size, object.stream)
        };
        Ok(SteadyRead {
            storage: self.clone(),
            key,
            size,
            at: 0,
            retries: 0,
            ahead: None,
            stream,
        })
    }
}

impl SteadyRead {
    /// Size of the whole object, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns once the first bytes have arrived, which shows that the store can serve the object.
    pub async fn begin(&mut self) -> Result<(), StorageError> {
        self.ahead = self.next().await?;
        Ok(())
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if let Some(piece) = self.ahead.take() {
            return Ok(Some(piece));
        }
        while self.at < self.size {
            let broken = match self.stream.next().await {
                Some(Ok(piece)) => {
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Some(Err(error)) => error,
                None => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    StorageError::local("read an object")(source)
                }
            };
            self.go_on_after(broken).await?;
        }
        Ok(None)
    }

    /// The remaining pieces as a stream.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, StorageError>> {
        let pieces = stream::try_unfold(self, |mut read| async move {
            Ok(read.next().await?.map(|piece| (piece, read)))
        });
        pieces.boxed()
    }

    async fn go_on_after(&mut self, mut broken: StorageError) -> Result<(), StorageError> {
        while self.retries < RETRIES_MAX {
            self.retries += 1;
            tracing::warn!(
                error = &broken as &dyn std::error::Error,
                "could not read an object to its end, retrying"
            );
            sleep(RETRY_WAIT * self.retries).await;
            match self.storage.read(&self.key, Some(self.at..self.size)).await {
                Ok(Some(object)) => {
                    self.stream = object.stream;
                    return Ok(());
                }
                Ok(None) => return Err(StorageError::missing(&self.key)),
                Err(error) => broken = error,
            }
        }
        Err(broken)
    }
}
