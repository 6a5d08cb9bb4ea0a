//! The images that a request brings or names: stores those inside it, and resolves links of this gateway to stored
//! references, which are never fetched over the network.

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::error::{InvalidDataUrl, RequestError};
use crate::{
    accounts::Caller,
    app::App,
    backend::catalog::Requirements,
    db,
    images::{
        intake::{self, IntakeError, Origin, Visibility},
        links::GatewayUrl,
        stored_inputs::StoredInputs,
    },
    tasks::{Reference, StoredReference},
    uploads,
};

/// Maximum length of an address. It does not apply to data URLs, whose images are decoded.
pub const URL_BYTES_MAX: usize = 8 << 10;

/// The images of a request, not yet resolved.
pub struct Sources {
    /// The first references, up to `references.count_max`.
    pub references: Vec<Source>,
    /// The number of references, including those not kept.
    pub given: usize,
    /// The mask, if there is one.
    pub mask: Option<Source>,
}

/// Where one image is.
pub enum Source {
    /// In storage.
    Stored(StoredReference),
    /// In the request, as a data URL; `None` if that is not one of a base64 image.
    Inline(Option<Pieces>),
    /// At this address; `None` if it is not UTF-8 or longer than [`URL_BYTES_MAX`].
    Address(Option<String>),
}

/// The image in a data URL, decoded piece by piece. A piece is `None` if it is not valid base64.
pub type Pieces = Box<dyn Iterator<Item = Option<Bytes>> + Send>;

/// What an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To generate from.
    Reference,
    /// Marks the part to change.
    Mask,
}

impl Role {
    /// The parameter to blame for such an image.
    pub(super) fn param(self) -> &'static str {
        match self {
            Self::Reference => "image_urls",
            Self::Mask => "mask",
        }
    }
}

impl Sources {
    /// What they require of a route.
    pub(super) fn requirements(&self) -> Requirements {
        Requirements {
            references: self.given,
            mask: self.mask.is_some(),
        }
    }

    /// Whether an image has still to be stored.
    pub(super) fn has_inline(&self) -> bool {
        let mut all = self.references.iter().chain(&self.mask);
        all.any(|source| matches!(source, Source::Inline(_)))
    }
}

/// Resolves one image. What it stores belongs to `inputs`.
pub(super) async fn resolve(
    app: &App,
    caller: &Caller,
    role: Role,
    source: Source,
    inputs: &mut StoredInputs,
) -> Result<Reference, RequestError> {
    let param = role.param();
    let address = match source {
        Source::Stored(stored) => return Ok(Reference::Stored(stored)),
        Source::Inline(pieces) => {
            let stored = store(app, caller, pieces, inputs).await;
            return stored
                .map(Reference::Stored)
                .map_err(|error| RequestError::Inline { param, error });
        }
        Source::Address(address) => address,
    };
    let address = address.ok_or_else(|| {
        let message = format!("{param} must be an https:// URL of at most {URL_BYTES_MAX} bytes");
        RequestError::invalid(param, message)
    })?;
    if let Some(link) = GatewayUrl::parse(&app.public_url, &address) {
        return own(app, param, link).await.map(Reference::Stored);
    }
    let url = app.references.check_url(&address);
    url.map(Reference::Foreign)
        .map_err(|error| RequestError::invalid(param, format!("{param} {error}")))
}

/// Decodes an image into storage.
async fn store(
    app: &App,
    caller: &Caller,
    pieces: Option<Pieces>,
    inputs: &mut StoredInputs,
) -> Result<StoredReference, IntakeError<InvalidDataUrl>> {
    let pieces = pieces.ok_or(IntakeError::Read(InvalidDataUrl))?;
    let pieces = stream::iter(pieces).then(async |piece| {
        // Decoding takes CPU time: yields to other tasks between pieces.
        tokio::task::consume_budget().await;
        piece.ok_or(InvalidDataUrl)
    });
    let origin = Origin {
        account_id: caller.account_id,
        file_name: None,
        visibility: Visibility::Unlinked,
    };
    let ingested = intake::ingest(app, origin, Box::pin(pieces), inputs).await?;
    Ok(ingested.into_reference())
}

/// The target of a link of this gateway, which must exist and not have expired.
async fn own(
    app: &App,
    param: &'static str,
    link: GatewayUrl,
) -> Result<StoredReference, RequestError> {
    let database = |cause| RequestError::Database {
        param: Some(param),
        cause,
    };
    let missing = || {
        let message = "a reference is a link of this gateway that names nothing";
        RequestError::invalid(param, message)
    };
    let (object, format, bytes) = match link {
        GatewayUrl::Upload(name) => {
            let upload = async {
                let mut conn = db::acquire(&app.pool).await?;
                uploads::store::get(&mut conn, &name).await
            };
            let upload = app.pool.in_time(upload).await.map_err(database)?;
            let upload = upload.ok_or_else(missing)?;
            if upload.expires_at <= app.clock.now() {
                let message = "a reference is an upload that has expired";
                return Err(RequestError::invalid(param, message));
            }
            (upload.object, upload.format, upload.bytes.unsigned_abs())
        }
        GatewayUrl::Result(link) => {
            let image = link.find(app).await.map_err(database)?;
            let image = image.ok_or_else(missing)?;
            (image.object, image.format, image.bytes)
        }
    };
    Ok(StoredReference {
        object,
        format,
        bytes,
        digest: String::new(),
    })
}
