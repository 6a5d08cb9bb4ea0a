//! Turns a request as it was sent into a valid one: validates every parameter once, stores the images in the request,
//! and resolves links of this gateway to stored references.

mod error;
mod options;
mod sources;

pub use error::{InvalidDataUrl, RequestError};
pub use options::{Options, Unparsed, VALUE_BYTES_MAX};
pub use sources::{Pieces, Role, Source, Sources, URL_BYTES_MAX};

use super::{stored_inputs::StoredInputs, unit_price};
use crate::{
    accounts::{self, Caller},
    app::App,
    backend::{
        Catalog,
        catalog::{Model, Requirements},
    },
    billing::Refusal,
    db,
    image::{self, Quality},
    money::Cny,
    tasks::Request,
};

/// Maximum length of a prompt in characters.
pub const PROMPT_CHARS_MAX: usize = 32_000;

/// The parameters of a request as its client sent them, `None` if not sent. Its images are [`Sources`].
#[derive(Debug, Default)]
pub struct Params {
    /// The name of a model.
    pub model: Option<String>,
    /// The prompt.
    pub prompt: Option<String>,
    /// How many images.
    pub n: Option<Count>,
    /// An aspect ratio or pixels.
    pub size: Option<String>,
    /// `1k` or `2k`.
    pub resolution: Option<String>,
    /// `low`, `medium` or `high`, or a name that OpenAI has used for them.
    pub quality: Option<String>,
    /// `url` or `b64_json`.
    pub response_format: Option<String>,
    /// Whether `stream` is true, which is not supported.
    pub wants_stream: bool,
    /// All others, for backends that support them.
    pub options: Options,
}

/// The value of `n`, which may not be a number.
#[derive(Debug)]
pub enum Count {
    /// A number that may be out of range.
    Given(u64),
    /// Anything else.
    NotANumber,
}

/// A valid request, and the requested response format.
#[derive(Debug)]
pub struct ValidatedRequest {
    /// The request, ready to be submitted as a task.
    pub request: Request,
    /// Its stored images, which are deleted unless the request is accepted.
    pub inputs: StoredInputs,
    /// The price of one image.
    pub unit_price: Cny,
    /// How the client asked for the images.
    pub response_format: ResponseFormat,
}

/// The parameter `response_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFormat {
    /// Not sent, or empty.
    Unsaid,
    /// `url`.
    Url,
    /// `b64_json`.
    B64Json,
}

/// Validates a request. Cheap checks come first, so that nothing is stored for a request that they refuse.
pub async fn resolve(
    app: &App,
    caller: &Caller,
    params: Params,
    sources: Sources,
    mut inputs: StoredInputs,
) -> Result<ValidatedRequest, RequestError> {
    let catalog = app.catalog();
    let model = model(&catalog, params.model.as_deref())?;
    check_stream(&params)?;
    let prompt = prompt(params.prompt)?;
    let n = count(params.n.as_ref(), model.settings.n_max)?;
    let (ratio, resolution, size) = image::resolve_size(
        given(params.size.as_ref()),
        given(params.resolution.as_ref()),
    )?;
    let quality = Quality::parse(given(params.quality.as_ref()))?;
    let response_format = response_format(params.response_format.as_deref())?;
    check_reference_count(app, sources.given)?;
    check_capabilities(model, sources.requirements())?;
    let options = params.options.read_by(model)?;
    let unit_price = unit_price(&model.settings, quality);
    if sources.has_inline() {
        check_balance(app, caller, unit_price * u32::from(n)).await?;
    }
    let mut references = Vec::with_capacity(sources.references.len());
    for source in sources.references {
        let reference = sources::resolve(app, caller, Role::Reference, source, &mut inputs);
        references.push(reference.await?);
    }
    let mask = match sources.mask {
        Some(mask) => Some(sources::resolve(app, caller, Role::Mask, mask, &mut inputs).await?),
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
    Ok(ValidatedRequest {
        request,
        inputs,
        unit_price,
        response_format,
    })
}

/// The checks of a form that are possible before one more file is stored. `params` and `images` are what preceded
/// it; more may follow.
pub async fn before_file(
    app: &App,
    caller: &Caller,
    params: &Params,
    images: Requirements,
    role: Role,
) -> Result<(), RequestError> {
    check_stream(params)?;
    if role == Role::Reference {
        check_reference_count(app, images.references + 1)?;
    }
    let catalog = app.catalog();
    let cheapest = |model: &Model| {
        let settings = &model.settings;
        let of_others = settings.price_medium.min(settings.price_high);
        settings.price_low.min(of_others)
    };
    let price = match &params.model {
        Some(name) => cheapest(model(&catalog, Some(name))?),
        None => catalog.models().map(cheapest).min().unwrap_or_default(),
    };
    if images.references == 0 && !images.mask {
        check_balance(app, caller, price).await?;
    }
    Ok(())
}

/// Checks the balance, so that nothing is stored for a request that the account cannot pay. The hold decides
/// finally.
async fn check_balance(app: &App, caller: &Caller, cost: Cny) -> Result<(), RequestError> {
    let available = async {
        let mut conn = db::acquire(&app.pool).await?;
        accounts::store::available(&mut conn, caller.account_id).await
    };
    match app.pool.in_time(available).await? {
        Some(available) if cost > available => Err(Refusal::Balance { cost, available }.into()),
        _ => Ok(()),
    }
}

fn check_stream(params: &Params) -> Result<(), RequestError> {
    if params.wants_stream {
        let message = "stream is not available yet: leave it out, or send false";
        return Err(RequestError::invalid("stream", message));
    }
    Ok(())
}

fn check_reference_count(app: &App, given: usize) -> Result<(), RequestError> {
    let count_max = app.config.references.count_max;
    if given > count_max {
        let message = format!("{given} reference images given, allowed are {count_max}");
        return Err(RequestError::invalid(Role::Reference.param(), message));
    }
    Ok(())
}

/// Treats blank parameters as not sent: forms include fields that were left empty.
fn given(param: Option<&String>) -> Option<&str> {
    param
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
}

/// Checks that at least one route of the model accepts the references and the mask.
fn check_capabilities(model: &Model, needs: Requirements) -> Result<(), RequestError> {
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
        return Err(RequestError::invalid(Role::Mask.param(), message));
    };
    if needs.references > references_max {
        let given = needs.references;
        let beside = if needs.mask { " beside a mask" } else { "" };
        let message = format!(
            "{given} reference images given, the model {name} takes {references_max} at most{beside}"
        );
        return Err(RequestError::invalid(Role::Reference.param(), message));
    }
    Ok(())
}

fn model<'a>(catalog: &'a Catalog, name: Option<&str>) -> Result<&'a Model, RequestError> {
    let configured = || {
        let names: Vec<&str> = catalog.models().map(|model| model.name.as_str()).collect();
        names.join(", ")
    };
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
        let message = format!("model is required, allowed: {}", configured());
        RequestError::invalid("model", message)
    })?;
    catalog
        .model(name)
        .ok_or_else(|| RequestError::UnknownModel {
            name: name
                .chars()
                .filter(|char| !char.is_control())
                .take(100)
                .collect(),
            allowed: configured(),
        })
}

fn prompt(prompt: Option<String>) -> Result<String, RequestError> {
    let refuse = |message: String| Err(RequestError::invalid("prompt", message));
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

fn count(n: Option<&Count>, n_max: u8) -> Result<u8, RequestError> {
    let given = match n {
        None => Some(1),
        Some(Count::Given(n)) => u8::try_from(*n).ok(),
        Some(Count::NotANumber) => None,
    };
    given.filter(|n| (1..=n_max).contains(n)).ok_or_else(|| {
        RequestError::invalid("n", format!("n must be an integer from 1 to {n_max}"))
    })
}

fn response_format(given: Option<&str>) -> Result<ResponseFormat, RequestError> {
    match given {
        None | Some("") => Ok(ResponseFormat::Unsaid),
        Some("url") => Ok(ResponseFormat::Url),
        Some("b64_json") => Ok(ResponseFormat::B64Json),
        Some(_) => {
            let message = "response_format must be url or b64_json";
            Err(RequestError::invalid("response_format", message))
        }
    }
}
