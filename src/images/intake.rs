//! Ingests images: uploads, images inside a request, and fetched references. Each is checked while
//! it streams into storage and is kept as an upload, so that one sweep deletes them all.

use std::error::Error;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};

use super::stored_inputs::StoredInputs;
use crate::{
    app::App,
    db,
    ids::{self, AccountId},
    image::{Filter, InvalidImage, Metadata},
    storage::{Key, ObjectWriter, StorageError},
    tasks::StoredReference,
    uploads::{self, QuotaError, Upload, store},
};

/// How much of an oversized file is still read, to report its size.
const OVERSIZE_READ_MAX: u64 = 256 << 20;

/// The owner of an image and how it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The account whose quota it counts against.
    pub account_id: AccountId,
    /// The name that the client sent.
    pub file_name: Option<&'a str>,
    /// Whether it gets a URL.
    pub visibility: Visibility,
}

/// Whether an image gets a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// A client's upload, with a URL.
    Linked,
    /// An input of one request, without a URL.
    Unlinked,
}

/// Why an image was not ingested. `E` is the error of its source stream.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError<E> {
    /// The bytes are no valid image of an accepted format.
    #[error(transparent)]
    Invalid(#[from] InvalidImage),
    /// The image exceeds `uploads.bytes_max`.
    #[error("file size {size} exceeds maximum {bytes_max} bytes")]
    TooLarge {
        /// The bytes that were read: all of them, or enough to refuse it.
        size: u64,
        /// The limit, in bytes.
        bytes_max: u64,
    },
    /// The account's stored images leave no space for it.
    #[error("{quota}: they are deleted after {hours} hours")]
    Full {
        /// The limit, and how much of it is used.
        quota: QuotaError,
        /// How long uploads are kept.
        hours: u64,
    },
    /// The source stream failed.
    #[error("the image could not be read")]
    Read(#[source] E),
    /// Storage failed.
    #[error("the image could not be stored")]
    Storage(#[from] StorageError),
    /// The database failed.
    #[error("the image could not be recorded")]
    Database(#[from] sqlx::Error),
}

/// An ingested image, and the SHA-256 of its bytes in hex (empty for an image with a URL).
#[derive(Debug)]
pub struct Ingested {
    /// Its row, which is stored already.
    pub upload: Upload,
    /// In lower case, or empty.
    pub digest: String,
}

impl Ingested {
    /// The image as a task refers to it.
    pub fn into_reference(self) -> StoredReference {
        StoredReference {
            object: self.upload.object,
            format: self.upload.format,
            bytes: self.upload.bytes.unsigned_abs(),
            digest: self.digest,
        }
    }
}

/// Streams an image into storage. It belongs to `inputs` from its first byte: unless `inputs` is
/// kept, the image is deleted again.
pub async fn ingest<S, E>(
    app: &App,
    origin: Origin<'_>,
    pieces: S,
    inputs: &mut StoredInputs,
) -> Result<Ingested, IntakeError<E>>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Error + Send,
{
    let quota = &app.storage_quota;
    let full = |error| IntakeError::of_quota(app, error);
    quota
        .check(&app.pool, origin.account_id)
        .await
        .map_err(full)?;
    let mut writer = IngestWriter::new(app, origin.visibility);
    let mut pieces = pieces;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(IntakeError::Read)?;
        writer.size += piece.len() as u64;
        if writer.size > app.config.uploads.bytes_max {
            return Err(writer.too_large(pieces).await);
        }
        writer.push(piece, inputs).await?;
    }
    let kept = writer.finish().await?;
    let upload = kept.upload(app, origin);
    let added = quota.add(&app.pool, origin.account_id, kept.bytes).await;
    added.map_err(full)?;
    let inserted = async { store::insert(&mut *db::acquire(&app.pool).await?, &upload).await };
    app.pool.in_time(inserted).await?;
    Ok(Ingested {
        upload,
        digest: kept.digest,
    })
}

impl<E> IntakeError<E> {
    fn of_quota(app: &App, error: QuotaError) -> Self {
        match error {
            QuotaError::Full { .. } => Self::Full {
                quota: error,
                hours: app.config.uploads.ttl().as_secs().div_ceil(3600),
            },
            QuotaError::Database(error) => error.into(),
        }
    }
}

struct IngestWriter<'a> {
    app: &'a App,
    filter: Filter,
    /// `None` if not needed: hashing takes longer than everything else here.
    digest: Option<Sha256>,
    size: u64,
    ready: Vec<Bytes>,
    object: Option<(Key, ObjectWriter)>,
    id: ids::UploadId,
}

/// An image whose bytes are in storage.
struct Kept {
    id: ids::UploadId,
    key: Key,
    bytes: u64,
    format: crate::image::Format,
    digest: String,
}

impl<'a> IngestWriter<'a> {
    fn new(app: &'a App, visibility: Visibility) -> Self {
        Self {
            app,
            filter: Filter::new(Metadata::Keep, app.image_limits()),
            digest: (visibility == Visibility::Unlinked).then(Sha256::new),
            size: 0,
            ready: Vec::new(),
            object: None,
            id: ids::row_id(),
        }
    }

    async fn push<E>(
        &mut self,
        piece: Bytes,
        inputs: &mut StoredInputs,
    ) -> Result<(), IntakeError<E>> {
        if let Some(digest) = &mut self.digest {
            digest.update(&piece);
        }
        self.filter.push(piece, &mut self.ready)?;
        if self.object.is_none()
            && let Some(format) = self.filter.format()
        {
            let key = Key::upload(self.app.clock.now(), self.id, format);
            inputs.add(self.app, self.id, key.clone());
            let writer = self.app.storage.writer(&key);
            self.object = Some((key, writer));
        }
        if let Some((_, writer)) = &mut self.object {
            for piece in self.ready.drain(..) {
                writer.write(piece).await?;
            }
        }
        Ok(())
    }

    async fn finish<E>(self) -> Result<Kept, IntakeError<E>> {
        let info = self.filter.finish()?;
        let (key, writer) = self.object.ok_or(InvalidImage::Damaged)?;
        let bytes = writer.finish().await?;
        let digest = self.digest.map(Digest::finalize);
        Ok(Kept {
            id: self.id,
            key,
            bytes,
            format: info.format,
            digest: digest.map(hex::encode).unwrap_or_default(),
        })
    }

    /// Reads on, to report the real size and so that the client gets to read the response.
    async fn too_large<S, E>(self, mut rest: S) -> IntakeError<E>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        let mut size = self.size;
        while let Some(Ok(piece)) = rest.next().await {
            size += piece.len() as u64;
            if size > OVERSIZE_READ_MAX {
                break;
            }
        }
        IntakeError::TooLarge {
            size,
            bytes_max: self.app.config.uploads.bytes_max,
        }
    }
}

impl Kept {
    fn upload(&self, app: &App, origin: Origin<'_>) -> Upload {
        let created_at = app.clock.now();
        let file_name = uploads::safe_file_name(origin.file_name, self.format);
        let linked = origin.visibility == Visibility::Linked;
        let life = match origin.visibility {
            Visibility::Linked => app.config.uploads.ttl(),
            // Until its request has been read and its task has ended.
            Visibility::Unlinked => app.config.server.body_timeout() + app.config.tasks.deadline(),
        };
        Upload {
            id: self.id,
            account_id: origin.account_id,
            name: linked.then(|| uploads::url_name(created_at, &file_name)),
            object: self.key.clone(),
            format: self.format,
            bytes: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            file_name,
            created_at,
            expires_at: created_at + life,
        }
    }
}
