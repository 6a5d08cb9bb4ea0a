//! References that are links of this gateway: read from storage, never over the network.

use crate::{
    app::App,
    db,
    http::error::ApiError,
    images::links::GatewayUrl,
    tasks::{Reference, StoredReference},
    uploads,
};

/// Resolves a link of this gateway to a stored reference; 400 if its target does not exist or has expired.
pub(super) async fn reference(app: &App, link: GatewayUrl) -> Result<Reference, ApiError> {
    let gone = || ApiError::bad_request("a reference is a link of this gateway that names nothing");
    let (object, format, bytes) = match link {
        GatewayUrl::Upload(name) => {
            let upload = async {
                let mut conn = db::acquire(&app.pool).await?;
                uploads::store::get(&mut conn, &name).await
            };
            let upload = app.pool.in_time(upload).await?.ok_or_else(gone)?;
            if upload.expires_at <= app.clock.now() {
                return Err(ApiError::bad_request(
                    "a reference is an upload that has expired",
                ));
            }
            (upload.object, upload.format, upload.bytes.unsigned_abs())
        }
        GatewayUrl::Result(link) => {
            let image = link.find(app).await?.ok_or_else(gone)?;
            (image.object, image.format, image.bytes)
        }
    };
    Ok(Reference::Stored(StoredReference {
        object,
        format,
        bytes,
        digest: String::new(),
    }))
}
