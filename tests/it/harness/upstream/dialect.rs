//! The dialects of OpenAI's API that the fake speaks: what each accepts, refuses and answers differently.

use serde_json::{Value, json};

use super::{KEY, REFUSED_PROMPT};
use crate::harness::fake_server::{Call, File, Reply};

/// Which copy of OpenAI's API the fake imitates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Openai,
    /// Addresses models by path.
    AzureDeployments,
    AzureV1,
    /// Any other copy, which answers with links unless asked for base64.
    Generic,
    SdServer,
    Localai,
}

/// The parameters that OpenAI and Azure know.
const PARAMETERS: [&str; 14] = [
    "background",
    "image",
    "image[]",
    "input_fidelity",
    "mask",
    "model",
    "moderation",
    "n",
    "output_compression",
    "output_format",
    "prompt",
    "quality",
    "size",
    "user",
];
const FILES: [&str; 3] = ["image", "image[]", "mask"];

impl Dialect {
    pub const ALL: [Self; 6] = [
        Self::Openai,
        Self::AzureDeployments,
        Self::AzureV1,
        Self::Generic,
        Self::SdServer,
        Self::Localai,
    ];

    /// A backend's settings for this dialect, for a server at `url`.
    pub(super) fn settings(self, url: &str) -> String {
        let (profile, base_url, more) = match self {
            Self::Openai => ("openai", format!("{url}/v1"), ""),
            Self::AzureDeployments => {
                ("azure", format!("{url}?api-version=2025-04-01-preview"), "")
            }
            Self::AzureV1 => ("azure", format!("{url}/openai/v1"), ""),
            Self::Generic => ("generic", format!("{url}/v1"), ""),
            Self::SdServer => ("sd-server", format!("{url}/v1"), "native_side_px = 64"),
            Self::Localai => ("localai", format!("{url}/v1"), "native_side_px = 128"),
        };
        let key = if self == Self::SdServer { "" } else { KEY };
        format!(
            "kind = \"openai\"\nprofile = \"{profile}\"\nbase_url = \"{base_url}\"\n\
             api_key = \"{key}\"\n{more}"
        )
    }

    /// An error in the shape of this dialect.
    pub fn error(self, status: u16, code: &str, message: &str) -> Reply {
        match self {
            Self::SdServer => Reply::json(status, &json!({"error": message})),
            Self::Localai => {
                let error = json!({"code": status, "message": message, "type": ""});
                Reply::json(status, &json!({"error": error}))
            }
            _ => Reply::error(status, code, message),
        }
    }

    /// The images that were asked for.
    pub(super) fn result(self, call: &Call) -> Reply {
        let asked = call.fields.get("response_format");
        let links = match self {
            Self::Generic | Self::Localai => asked.and_then(Value::as_str) != Some("b64_json"),
            _ => false,
        };
        if links {
            let host = call.header("host").unwrap_or_default();
            let link = format!("http://{host}/files/image.png");
            let count = usize::try_from(call.n().unwrap_or(1)).unwrap();
            return Reply::links(&vec![link.as_str(); count]);
        }
        Reply::result(call)
    }

    /// Refuses a call without the right key.
    pub(super) fn check_key(self, call: &Call) -> Result<(), Reply> {
        let knows = match self {
            Self::SdServer => true,
            Self::AzureDeployments | Self::AzureV1 => call.header("api-key") == Some(KEY),
            _ => call.has_bearer(KEY),
        };
        if knows {
            return Ok(());
        }
        Err(self.error(401, "invalid_api_key", "Incorrect API key provided."))
    }

    /// Refuses a call that the real API would refuse.
    pub(super) fn check(self, call: &Call) -> Result<(), Reply> {
        self.check_key(call)?;
        self.check_path(call)?;
        let strict = matches!(self, Self::Openai | Self::AzureDeployments | Self::AzureV1);
        if strict {
            check_names(call)?;
        }
        let prompt = call.fields.get("prompt").and_then(Value::as_str);
        match prompt {
            None | Some("") => return Err(self.error(400, "invalid_value", "prompt required")),
            Some(REFUSED_PROMPT) => {
                let message = "Your request was rejected by the safety system.";
                return Err(self.error(400, "moderation_blocked", message));
            }
            Some(text) if self == Self::SdServer && text.contains("<sd_cpp_extra_args>") => {
                return Err(self.error(400, "", "invalid sd_cpp_extra_args"));
            }
            Some(_) => {}
        }
        if strict {
            check_values(call)?;
        }
        Ok(())
    }

    fn check_path(self, call: &Call) -> Result<(), Reply> {
        let (path, query) = (call.path.as_str(), call.query.as_str());
        let knows = match self {
            Self::AzureDeployments => {
                path.starts_with("/openai/deployments/") && query.starts_with("api-version=20")
            }
            Self::AzureV1 => path.starts_with("/openai/v1/"),
            // Older servers have no edits: a reference is sent as text.
            Self::Localai => path == "/v1/images/generations",
            _ => path.starts_with("/v1/"),
        };
        if !knows {
            return Err(self.error(404, "404", "Resource not found"));
        }
        // A deployment implies its model.
        if self == Self::AzureDeployments && call.fields.contains_key("model") {
            return Err(unknown_parameter("model"));
        }
        if self == Self::SdServer && path.ends_with("edits") && call.files.is_empty() {
            return Err(self.error(400, "", "Content-Type must be multipart/form-data"));
        }
        Ok(())
    }
}

fn unknown_parameter(name: &str) -> Reply {
    let message = format!("Unknown parameter: '{name}'.");
    Reply::error_about(Some(name), 400, "unknown_parameter", &message)
}

fn check_names(call: &Call) -> Result<(), Reply> {
    let files = call.files.iter().map(|file| file.name.as_str());
    let mut names = call.fields.keys().map(String::as_str).chain(files);
    match names.find(|name| !PARAMETERS.contains(name)) {
        Some(unknown) => Err(unknown_parameter(unknown)),
        None => Ok(()),
    }
}

fn check_values(call: &Call) -> Result<(), Reply> {
    let invalid = |param: &str, message: &str| {
        Err(Reply::error_about(
            Some(param),
            400,
            "invalid_value",
            message,
        ))
    };
    if !matches!(call.n(), Some(1..=10)) {
        return invalid("n", "Invalid 'n': expected an integer from 1 to 10.");
    }
    let three = [(1024, 1024), (1536, 1024), (1024, 1536)];
    let model = call.fields.get("model").and_then(Value::as_str);
    let fixed = model.is_some_and(|model| model.starts_with("gpt-image-1"));
    match call.size() {
        None => return invalid("size", "Invalid size: both sides must be divisible by 16."),
        Some(size) if fixed && !three.contains(&size) => {
            return invalid(
                "size",
                "Invalid size: supported are the three of this model.",
            );
        }
        Some(_) => {}
    }
    let images = call.files.iter().filter(|file| file.name != "mask");
    if call.path.ends_with("edits") && !(1..=16).contains(&images.count()) {
        return invalid("image", "Expected 1 to 16 images.");
    }
    let mut files = call.files.iter();
    match files.find(|file| !FILES.contains(&file.name.as_str()) || !is_image(file)) {
        Some(file) => invalid(&file.name, "Invalid image file or mode."),
        None => Ok(()),
    }
}

/// Whether the bytes have the signature of their content type.
fn is_image(file: &File) -> bool {
    let bytes: &[u8] = &file.bytes;
    match file.content_type.as_str() {
        "image/png" => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
        "image/jpeg" => bytes.starts_with(b"\xff\xd8\xff"),
        "image/webp" => bytes.starts_with(b"RIFF"),
        _ => false,
    }
}
