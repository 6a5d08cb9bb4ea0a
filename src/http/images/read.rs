//! Reading a generation request, whatever form it comes in.

use axum::{
    extract::Request,
    http::{StatusCode, header},
};
use futures_util::StreamExt;

use super::{
    resolve::Asked,
    wire::{self, Fields},
};
use crate::{
    accounts::Caller,
    app::App,
    http::{body, error::ApiError},
    images::intake::{self, Origin, Reach},
};

/// Of a form: beside the images, clients send about twenty fields.
const PARTS_MAX: usize = 64;
/// Of one text part. A prompt has at most 32000 characters of four bytes; a data URL may stand here too.
const TEXT_BYTES_MAX: usize = 32 << 20;

/// Reads and checks a request; images that came inside it are stored.
pub(super) async fn read(app: &App, caller: &Caller, request: Request) -> Result<Asked, ApiError> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json")
        .to_owned();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("multipart/form-data") {
        let fields = form(app, caller, request, &content_type).await?;
        return Asked::resolve(app, caller, fields).await;
    }
    if !is_json(media_type) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported content type, allowed: application/json, multipart/form-data",
        ));
    }
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let held = body::hold(app, request.into_body(), declared).await?;
    Asked::resolve(app, caller, Fields::from_json(&held.bytes)?).await
}

/// `curl -d` without a header says that JSON is a form.
fn is_json(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    media_type == "application/json"
        || media_type.ends_with("+json")
        || media_type == "application/x-www-form-urlencoded"
        || media_type == "text/plain"
}

async fn form(
    app: &App,
    caller: &Caller,
    request: Request,
    content_type: &str,
) -> Result<Fields<'static>, ApiError> {
    let mut form = body::form(app, request, content_type)?;
    let mut fields = Fields::default();
    let mut parts = 0;
    while let Some(part) = form.next_field().await.map_err(body::malformed_form)? {
        parts += 1;
        if parts > PARTS_MAX {
            return Err(ApiError::bad_request(format!(
                "a form may have {PARTS_MAX} parts"
            )));
        }
        let name = part.name().unwrap_or_default().to_owned();
        if part.file_name().is_some() || wire::takes_file(&name) && part.content_type().is_some() {
            if wire::takes_file(&name) {
                let file_name = part.file_name().map(str::to_owned);
                let origin = Origin {
                    account_id: caller.account_id,
                    file_name: file_name.as_deref(),
                    reach: Reach::Unlinked,
                };
                let pieces = part.map(|piece| piece.map_err(body::malformed_form));
                let taken = intake::take_in(app, origin, pieces).await;
                let taken = taken.map_err(|error| ApiError::from(error).param(&name))?;
                fields.set_file(&name, taken.into_reference());
            }
            continue;
        }
        fields.set_form(&name, text(part).await?)?;
    }
    Ok(fields)
}

async fn text(mut part: multer::Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = part.chunk().await.map_err(body::malformed_form)? {
        if bytes.len() + piece.len() > TEXT_BYTES_MAX {
            let message = format!("a text part exceeds maximum {TEXT_BYTES_MAX} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes)
        .ok()
        .ok_or_else(|| ApiError::bad_request("a text part is not UTF-8"))
}
