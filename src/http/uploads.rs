//! `POST /v1/uploads/images`: stores a reference image and returns a URL that expires after 72 hours.

use axum::{
    extract::{Request, State},
    http::header,
    response::Response,
};
use serde_json::json;

use super::{body, error::ApiError, extract::Admitted, form::Form, page};
use crate::{
    app::App,
    images::{
        intake::{self, IntakeError, Origin, Visibility},
        links,
        stored_inputs::StoredInputs,
    },
    uploads::Upload,
};

const NO_FILE: &str = "missing or invalid file field: http: no such file";

/// Stores the form's first `file` part; other parts are ignored.
pub(super) async fn upload(
    State(app): State<App>,
    Admitted(caller): Admitted,
    request: Request,
) -> Result<Response, ApiError> {
    app.storage.usable()?;
    let no_file = || ApiError::field("file", NO_FILE);
    let content_type = content_type(&request).ok_or_else(no_file)?;
    let mut form = body::form(&app, request, &content_type)?;
    let file_name = file(&mut form).await?.ok_or_else(no_file)?;
    let origin = Origin {
        account_id: caller.account_id,
        file_name: Some(&file_name),
        visibility: Visibility::Linked,
    };
    let mut inputs = StoredInputs::default();
    let ingested = intake::ingest(&app, origin, form.content(), &mut inputs).await;
    let upload = ingested.map_err(refusal)?.upload;
    inputs.keep();
    Ok(page::json(&object(&app, &upload)))
}

/// Reads up to the content of the first file named `file`, and returns the file's name.
async fn file(form: &mut Form) -> Result<Option<String>, ApiError> {
    while let Some(part) = form.next_part().await? {
        if part.name == "file" && part.file_name.is_some() {
            return Ok(part.file_name);
        }
    }
    Ok(None)
}

fn content_type(request: &Request) -> Option<String> {
    let value = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    let is_form = value
        .get(..19)
        .is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data"));
    is_form.then(|| value.to_owned())
}

fn refusal(error: IntakeError<ApiError>) -> ApiError {
    ApiError::from(error).param("file")
}

fn object(app: &App, upload: &Upload) -> serde_json::Value {
    json!({
        "url": upload.name.as_deref().map(|name| links::upload(name, &app.public_url)),
        "filename": upload.file_name,
        "content_type": upload.format.content_type(),
        "bytes": upload.bytes,
        "created_at": upload.created_at.timestamp(),
        "expires_at": upload.expires_at.timestamp(),
    })
}
