//! Turns request fields into a valid request: validates every field once, stores the images in the request, and
//! resolves links of this gateway to stored references.

use axum::http::StatusCode;
use futures_util::{StreamExt, stream};

use super::{
    inline, own_links,
    sources::{Source, Text, URL_BYTES_MAX},
    wire::{self, Count, Fields, PROMPT_CHARS_MAX},
};
use crate::{
    accounts::{self, Caller},
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Requirements},
    },
    billing::Refusal,
    db,
    http::error::ApiError,
    image::{self, Quality},
    images::{
        intake::{self, Origin, Visibility},
        links::GatewayUrl,
        stored_inputs::StoredInputs,
        submit::SubmitError,
        unit_price,
    },
    money::Cny,
    tasks::{Reference, Request},
};

/// A valid request, and the requested response format.
#[derive(Debug)]
pub(super) struct ValidatedRequest {
    /// The request, ready to be submitted as a task.
    pub request: Request,
    /// Its stored images, which are deleted unless the request is accepted.
    pub inputs: StoredInputs,
    /// The price of one image.
    pub unit_price: Cny,
    /// How the client asked for the images.
    pub response_format: ResponseFormat,
}

/// The field `response_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFormat {
    /// Not sent, or empty.
    Unsaid,
    /// `url`.
    Url,
    /// `b64_json`.
    B64Json,
}

impl ValidatedRequest {
    /// Validates the fields. Cheap checks come first, so that nothing is stored for a request that they refuse.
    pub(super) async fn resolve(
        app: &App,
        caller: &Caller,
        fields: Fields,
        mut inputs: StoredInputs,
    ) -> Result<Self, ApiError> {
        let catalog = app.catalog();
        let model = model(&catalog, fields.model.as_deref())?;
        check_stream(&fields)?;
        let prompt = prompt(fields.prompt)?;
        let n = count(fields.n.as_ref(), model.settings.n_max)?;
        let (ratio, resolution, size) = image::resolve_size(
            given(fields.size.as_ref()),
            given(fields.resolution.as_ref()),
        )?;
        let quality = Quality::parse(given(fields.quality.as_ref()))?;
        let response_format = response_format(fields.response_format.as_deref())?;
        check_reference_count(app, fields.references.given)?;
        let needs = Requirements {
            references: fields.references.given,
            mask: fields.mask.is_some(),
        };
        check_capabilities(model, needs)?;
        let options = fields.options.read_by(model)?;
        let unit_price = unit_price(&model.settings, quality);
        let sources = fields.references.list.iter().chain(&fields.mask);
        if sources.into_iter().any(Source::is_inline) {
            check_balance(app, caller, unit_price * u32::from(n)).await?;
        }
        let mut references = Vec::with_capacity(fields.references.list.len());
        for source in fields.references.list {
            references.push(reference(app, caller, "image_urls", source, &mut inputs).await?);
        }
        let mask = match fields.mask {
            Some(source) => Some(reference(app, caller, "mask", source, &mut inputs).await?),
            None => None,
        };
        let request = Request {
            model: model.name.clone(),
            prompt,
            n,
            ratio,
            resolution,
            size,
            quality,
            references,
            mask,
            options,
        };
        Ok(Self {
            request,
            inputs,
            unit_price,
            response_format,
        })
    }
}

/// The checks of a form that are possible before one more file is stored. Its other fields may still follow.
pub(super) async fn before_file(
    app: &App,
    caller: &Caller,
    fields: &Fields,
    name: &str,
) -> Result<(), ApiError> {
    check_stream(fields)?;
    let is_first = fields.references.given == 0 && fields.mask.is_none();
    if !wire::is_mask(name) {
        check_reference_count(app, fields.references.given + 1)?;
    }
    let catalog = app.catalog();
    let cheapest = |model: &Model| {
        let settings = &model.settings;
        let prices = [
            settings.price_low,
            settings.price_medium,
            settings.price_high,
        ];
        prices.into_iter().min().unwrap_or_default()
    };
    let price = match &fields.model {
        Some(name) => cheapest(model(&catalog, Some(name))?),
        None => catalog.models().map(cheapest).min().unwrap_or_default(),
    };
    if is_first {
        check_balance(app, caller, price).await?;
    }
    Ok(())
}

/// Checks the balance, so that nothing is stored for a request that the account cannot pay. The hold decides
/// finally.
async fn check_balance(app: &App, caller: &Caller, cost: Cny) -> Result<(), ApiError> {
    let available = async {
        let mut conn = db::acquire(&app.pool).await?;
        accounts::store::available(&mut conn, caller.account_id).await
    };
    match app.pool.in_time(available).await? {
        Some(available) if cost > available => {
            Err(SubmitError::Refused(Refusal::Balance { cost, available }).into())
        }
        _ => Ok(()),
    }
}

fn check_stream(fields: &Fields) -> Result<(), ApiError> {
    if fields.wants_stream {
        let message = "stream is not available yet: leave it out, or send false";
        return Err(ApiError::field("stream", message));
    }
    Ok(())
}

fn check_reference_count(app: &App, given: usize) -> Result<(), ApiError> {
    let count_max = app.config.references.count_max;
    if given > count_max {
        let message = format!("{given} reference images given, allowed are {count_max}");
        return Err(ApiError::field("image_urls", message));
    }
    Ok(())
}

/// Treats blank fields as not sent: forms include fields that were left empty.
fn given(field: Option<&String>) -> Option<&str> {
    field
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
}

/// Checks that at least one route of the model accepts the references and the mask.
fn check_capabilities(model: &Model, needs: Requirements) -> Result<(), ApiError> {
    let name = &model.name;
    let capabilities = model
        .routes()
        .iter()
        .map(|route| route.backend.capabilities());
    let of_masks = capabilities.filter(|capabilities| capabilities.mask || !needs.mask);
    let Some(references_max) = of_masks
        .map(|capabilities| capabilities.references_max)
        .max()
    else {
        let message = format!("the model {name} takes no mask");
        return Err(ApiError::field("mask", message));
    };
    if needs.references > references_max {
        let given = needs.references;
        let beside = if needs.mask { " beside a mask" } else { "" };
        let message = format!(
            "{given} reference images given, the model {name} takes {references_max} at most{beside}"
        );
        return Err(ApiError::field("image_urls", message));
    }
    Ok(())
}

fn model<'a>(catalog: &'a Catalog, name: Option<&str>) -> Result<&'a Model, ApiError> {
    let configured = || {
        let names: Vec<&str> = catalog.models().map(|model| model.name.as_str()).collect();
        names.join(", ")
    };
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
        ApiError::field(
            "model",
            format!("model is required, allowed: {}", configured()),
        )
    })?;
    catalog.model(name).ok_or_else(|| {
        let shown: String = name
            .chars()
            .filter(|char| !char.is_control())
            .take(100)
            .collect();
        let message = format!("no such model: {shown}, allowed: {}", configured());
        ApiError::new(StatusCode::NOT_FOUND, message)
            .param("model")
            .code("model_not_found")
    })
}

fn prompt(prompt: Option<String>) -> Result<String, ApiError> {
    let refuse = |message: String| Err(ApiError::field("prompt", message));
    match prompt {
        Some(text) if text.trim().is_empty() => refuse("prompt must not be blank".to_owned()),
        None => refuse("prompt is required".to_owned()),
        Some(text) if text.contains('\0') => {
            refuse("prompt must not contain the character NUL".to_owned())
        }
        Some(text) => match text.chars().count() {
            chars if chars > PROMPT_CHARS_MAX => refuse(format!(
                "prompt has {chars} characters, allowed are {PROMPT_CHARS_MAX}"
            )),
            _ => Ok(text),
        },
    }
}

fn count(n: Option<&Count>, n_max: u8) -> Result<u8, ApiError> {
    let given = match n {
        None => Some(1),
        Some(Count::Given(n)) => u8::try_from(*n).ok(),
        Some(Count::NotANumber) => None,
    };
    given
        .filter(|n| (1..=n_max).contains(n))
        .ok_or_else(|| ApiError::field("n", format!("n must be an integer from 1 to {n_max}")))
}

fn response_format(given: Option<&str>) -> Result<ResponseFormat, ApiError> {
    match given {
        None | Some("") => Ok(ResponseFormat::Unsaid),
        Some("url") => Ok(ResponseFormat::Url),
        Some("b64_json") => Ok(ResponseFormat::B64Json),
        Some(_) => Err(ApiError::field(
            "response_format",
            "response_format must be url or b64_json",
        )),
    }
}

async fn reference(
    app: &App,
    caller: &Caller,
    param: &str,
    source: Source,
    inputs: &mut StoredInputs,
) -> Result<Reference, ApiError> {
    let text = match source {
        Source::File(file) => return Ok(Reference::Stored(file)),
        Source::Text(text) => text,
    };
    if text.is_data_url() {
        return inline(app, caller, param, &text, inputs).await;
    }
    let address = text.address().ok_or_else(|| {
        ApiError::field(
            param,
            format!("{param} must be an https:// URL of at most {URL_BYTES_MAX} bytes"),
        )
    })?;
    if let Some(own) = GatewayUrl::parse(&app.public_url, &address) {
        return own_links::reference(app, own)
            .await
            .map_err(|error| error.param(param));
    }
    app.references
        .check_url(&address)
        .map(Reference::Foreign)
        .map_err(|error| ApiError::field(param, format!("{param} {error}")))
}

/// A `data:image/*;base64,…` URL, decoded piece by piece into storage.
async fn inline(
    app: &App,
    caller: &Caller,
    param: &str,
    url: &Text,
    inputs: &mut StoredInputs,
) -> Result<Reference, ApiError> {
    let invalid = || {
        ApiError::field(
            param,
            "a data URL must be data:image/…;base64, followed by valid base64",
        )
    };
    let pieces = inline::pieces(url).ok_or_else(invalid)?;
    let pieces = pieces.map(|piece| piece.ok_or_else(invalid));
    let pieces = stream::iter(pieces).then(async |piece| {
        // Decoding takes CPU time: yields to other tasks between pieces.
        tokio::task::consume_budget().await;
        piece
    });
    let origin = Origin {
        account_id: caller.account_id,
        file_name: None,
        visibility: Visibility::Unlinked,
    };
    let ingested = intake::ingest(app, origin, Box::pin(pieces), inputs).await;
    let ingested = ingested.map_err(|error| ApiError::from(error).param(param))?;
    Ok(Reference::Stored(ingested.into_reference()))
}
