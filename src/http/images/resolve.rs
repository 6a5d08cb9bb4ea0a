//! From what was sent to what is to be drawn: every field checked once, images that came inside the
//! request stored, our own links turned into what they stand for.

use std::borrow::Cow;

use futures_util::stream;

use super::{
    own_links::{self, OwnLink},
    wire::{Count, Fields, Source},
};
use crate::{
    accounts::Caller,
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Needs},
    },
    http::error::ApiError,
    image::{self, Quality},
    images::{
        intake::{self, Origin, Reach},
        unit_price,
    },
    money::Cny,
    tasks::{Reference, Request},
};

const PROMPT_CHARS_MAX: usize = 32_000;

/// A valid request, and how its answer is wanted.
#[derive(Debug)]
pub(super) struct Asked {
    pub request: Request,
    pub unit_price: Cny,
    pub response_format: ResponseFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFormat {
    Unsaid,
    Url,
    B64Json,
}

impl Asked {
    /// What is cheap to check comes first, so that nothing is stored for a request that is refused.
    pub(super) async fn resolve(
        app: &App,
        caller: &Caller,
        fields: Fields<'_>,
    ) -> Result<Self, ApiError> {
        let catalog = app.catalog();
        let model = model(&catalog, fields.model)?;
        let prompt = prompt(fields.prompt)?;
        let n = count(fields.n.as_ref(), model.settings.n_max)?;
        let (ratio, resolution, size) = image::resolve_size(
            given(fields.size.as_ref()),
            given(fields.resolution.as_ref()),
        )?;
        let quality = Quality::parse(given(fields.quality.as_ref()))?;
        let response_format = response_format(fields.response_format.as_deref())?;
        let count_max = app.config.references.count_max;
        if fields.references.len() > count_max {
            let message = format!(
                "{} reference images given, allowed are {count_max}",
                fields.references.len()
            );
            return Err(ApiError::field("image_urls", message));
        }
        let needs = Needs {
            references: fields.references.len(),
            mask: fields.mask.is_some(),
        };
        able(model, needs)?;
        let mut references = Vec::with_capacity(fields.references.len());
        for source in fields.references {
            references.push(reference(app, caller, "image_urls", source).await?);
        }
        let mask = match fields.mask {
            Some(source) => Some(reference(app, caller, "mask", source).await?),
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
            options: fields.options,
        };
        Ok(Self {
            request,
            unit_price: unit_price(&model.settings, quality),
            response_format,
        })
    }
}

/// Forms send fields that were left empty.
fn given(field: Option<&String>) -> Option<&str> {
    field
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
}

/// Whether some route of the model takes what comes along.
fn able(model: &Model, needs: Needs) -> Result<(), ApiError> {
    let abilities = || model.routes().iter().map(|route| route.backend.abilities());
    let name = &model.name;
    if needs.mask && !abilities().any(|abilities| abilities.mask) {
        let message = format!("the model {name} takes no mask");
        return Err(ApiError::field("mask", message));
    }
    let references_max = abilities().map(|abilities| abilities.references_max).max();
    let references_max = references_max.unwrap_or_default();
    if needs.references > references_max {
        let given = needs.references;
        let message = format!(
            "{given} reference images given, the model {name} takes {references_max} at most"
        );
        return Err(ApiError::field("image_urls", message));
    }
    Ok(())
}

fn model(catalog: &Catalog, name: Option<String>) -> Result<&Model, ApiError> {
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
    catalog.model(&name).ok_or_else(|| {
        let shown: String = name
            .chars()
            .filter(|char| !char.is_control())
            .take(100)
            .collect();
        let message = format!("no such model: {shown}, allowed: {}", configured());
        ApiError::field("model", message).code("model_not_found")
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
    source: Source<'_>,
) -> Result<Reference, ApiError> {
    let text = match source {
        Source::File(file) => return Ok(Reference::Stored(file)),
        Source::Text(text) => text,
    };
    if text
        .get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
    {
        return inline(app, caller, param, &text).await;
    }
    if let Some(own) = OwnLink::parse(&app.config.server.public_url(), &text) {
        return own_links::reference(app, own)
            .await
            .map_err(|error| error.param(param));
    }
    app.references
        .check_url(&text)
        .map(Reference::Foreign)
        .map_err(|error| ApiError::field(param, format!("{param} {error}")))
}

/// A `data:image/*;base64,…` URL, decoded piece by piece into storage.
async fn inline(
    app: &App,
    caller: &Caller,
    param: &str,
    text: &str,
) -> Result<Reference, ApiError> {
    let invalid = || {
        ApiError::field(
            param,
            "a data URL must be data:image/…;base64, followed by valid base64",
        )
    };
    let (kind, data) = text.split_once(',').ok_or_else(invalid)?;
    let kind = kind.to_ascii_lowercase();
    if !kind.starts_with("data:image/") || !kind.ends_with(";base64") {
        return Err(invalid());
    }
    let pieces = stream::iter(base64_pieces(data).map(|piece| piece.ok_or_else(invalid)));
    let origin = Origin {
        account_id: caller.account_id,
        file_name: None,
        reach: Reach::Unlinked,
    };
    let taken = intake::take_in(app, origin, pieces).await;
    let taken = taken.map_err(|error| ApiError::from(error).param(param))?;
    Ok(Reference::Stored(taken.into_reference()))
}

/// A multiple of four: each piece decodes by itself.
const BASE64_PIECE: usize = 64 << 10;

/// Decodes piece by piece. Line breaks and spaces between the characters are passed over, padding may
/// be missing, and both alphabets are read, as lenient decoders of other gateways do.
fn base64_pieces(data: &str) -> impl Iterator<Item = Option<bytes::Bytes>> + Send {
    let clean = if data
        .bytes()
        .any(|byte| byte.is_ascii_whitespace() || byte == b'-' || byte == b'_')
    {
        let plain = data.chars().filter(|char| !char.is_ascii_whitespace());
        Cow::Owned(
            plain
                .map(|char| match char {
                    '-' => '+',
                    '_' => '/',
                    char => char,
                })
                .collect::<String>(),
        )
    } else {
        Cow::Borrowed(data)
    };
    let length = clean.trim_end_matches('=').len();
    (0..length).step_by(BASE64_PIECE).map(move |start| {
        let piece = clean
            .as_bytes()
            .get(start..(start + BASE64_PIECE).min(length))?;
        base64_simd::STANDARD_NO_PAD
            .decode_to_vec(piece)
            .ok()
            .map(bytes::Bytes::from)
    })
}
