//! Reads a generation request from a JSON body or a form.

use axum::{
    extract::Request,
    http::{StatusCode, header},
};
use bytes::BytesMut;

use super::wire::{self, Fields, Part};
use crate::{
    accounts::Caller,
    app::App,
    http::{
        body::{self, Holding},
        error::ApiError,
        form::Form,
    },
    images::{
        intake::{self, Origin, Visibility},
        request::{self, ValidatedRequest},
        stored_inputs::StoredInputs,
    },
};

/// Maximum number of parts in a form. Clients send about twenty fields besides the images.
const PARTS_MAX: usize = 64;

/// Reads and validates a request, and stores the images in its body.
pub(super) async fn read(
    app: &App,
    caller: &Caller,
    request: Request,
) -> Result<ValidatedRequest, ApiError> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json")
        .to_owned();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let mut inputs = StoredInputs::default();
    // Keeps the body's memory charged until the images in it are stored.
    let (fields, _holding) = if media_type.eq_ignore_ascii_case("multipart/form-data") {
        form(app, caller, request, &content_type, &mut inputs).await?
    } else if is_json(media_type) {
        json(app, caller, request).await?
    } else {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported content type, allowed: application/json, multipart/form-data",
        ));
    };
    let (params, sources) = fields.into_parts();
    Ok(request::resolve(app, caller, params, sources, inputs).await?)
}

/// Accepts form and text types too, since `curl -d` without a header sends JSON as a URL-encoded form.
fn is_json(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    media_type == "application/json"
        || media_type.ends_with("+json")
        || media_type == "application/x-www-form-urlencoded"
        || media_type == "text/plain"
}

async fn json(app: &App, caller: &Caller, request: Request) -> Result<(Fields, Holding), ApiError> {
    let (bytes, holding) = body::hold(app, caller, request.into_body()).await?;
    let references_max = app.config.references.count_max;
    let read = move || Fields::from_json(&bytes, references_max);
    let fields = body::parse(holding.bytes(), read).await?;
    Ok((fields, holding))
}

async fn form(
    app: &App,
    caller: &Caller,
    request: Request,
    content_type: &str,
    inputs: &mut StoredInputs,
) -> Result<(Fields, Holding), ApiError> {
    let mut form = body::form(app, request, content_type)?;
    let mut fields = Fields::new(app.config.references.count_max);
    let mut holding = Holding::new(app, caller);
    let mut parts = 0;
    while let Some(part) = form.next_part().await? {
        parts += 1;
        if parts > PARTS_MAX {
            return Err(ApiError::bad_request(format!(
                "a form may have {PARTS_MAX} parts"
            )));
        }
        let name = part.name;
        let takes_file = wire::takes_file(&name);
        if part.file_name.is_some() || takes_file && part.is_typed {
            if takes_file {
                let (images, role) = (fields.requirements(), wire::role(&name));
                request::before_file(app, caller, &fields.params, images, role).await?;
                let origin = Origin {
                    account_id: caller.account_id,
                    file_name: part.file_name.as_deref(),
                    visibility: Visibility::Unlinked,
                };
                let ingested = intake::ingest(app, origin, form.content(), inputs).await;
                let ingested = ingested.map_err(|error| ApiError::from(error).param(&name))?;
                fields.set_file(&name, ingested.into_reference());
            }
            continue;
        }
        let part = text(app, &mut form, &mut holding, wire::part_bytes_max(&name)).await?;
        fields = body::parse(part.length(), move || {
            fields.set_form(&name, part)?;
            Ok(fields)
        })
        .await?;
    }
    Ok((fields, holding))
}

/// Reads a text part up to its limit. The rest of a longer part is skipped.
async fn text(
    app: &App,
    form: &mut Form,
    holding: &mut Holding,
    bytes_max: Option<usize>,
) -> Result<Part, ApiError> {
    let all_bytes_max = app.config.server.json_bytes_max;
    let mut bytes = BytesMut::new();
    while let Some(piece) = form.chunk().await? {
        if bytes_max.is_some_and(|bytes_max| bytes.len() + piece.len() > bytes_max) {
            return Ok(Part::TooLong);
        }
        if holding.bytes() + piece.len() > all_bytes_max {
            let message = format!("the text parts exceed maximum {all_bytes_max} bytes in all");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        holding.push(&mut bytes, &piece)?;
    }
    Ok(Part::Whole(bytes.freeze()))
}
