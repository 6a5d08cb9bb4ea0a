//! The dialects of OpenAI's API that the fake speaks: what each accepts, refuses and answers differently.

use serde_json::{Value, json};

use super::{KEY, REFUSED_PROMPT, Received, Reply};

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
    pub(super) fn result(self, received: &Received) -> Reply {
        let asked = received.fields.get("response_format");
        let links = match self {
            Self::Generic | Self::Localai => asked.and_then(Value::as_str) != Some("b64_json"),
            _ => false,
        };
        if links {
            let link = format!("http://{}/files/image.png", received.host());
            let count = usize::try_from(received.n().unwrap_or(1)).unwrap();
            return Reply::links(&vec![link.as_str(); count]);
        }
        Reply::result(received)
    }

    /// Refuses a call without the right key.
    pub(super) fn check_key(self, received: &Received) -> Result<(), Reply> {
        let knows = match self {
            Self::SdServer => true,
            Self::AzureDeployments | Self::AzureV1 => received.header("api-key") == Some(KEY),
            _ => received.header("authorization") == Some(&format!("Bearer {KEY}")),
        };
        if knows {
            return Ok(());
        }
        Err(self.error(401, "invalid_api_key", "Incorrect API key provided."))
    }

    /// Refuses a call that the real API would refuse.
    pub(super) fn check(self, received: &Received) -> Result<(), Reply> {
        self.check_key(received)?;
        self.check_path(received)?;
        let strict = matches!(self, Self::Openai | Self::AzureDeployments | Self::AzureV1);
        if strict {
            check_names(received)?;
        }
        let prompt = received.fields.get("prompt").and_then(Value::as_str);
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
            check_values(received)?;
        }
        Ok(())
    }

    fn check_path(self, received: &Received) -> Result<(), Reply> {
        let (path, query) = (received.path.as_str(), received.query.as_str());
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
        if self == Self::AzureDeployments && received.fields.contains_key("model") {
            return Err(unknown_parameter("model"));
        }
        if self == Self::SdServer && path.ends_with("edits") && received.files.is_empty() {
            return Err(self.error(400, "", "Content-Type must be multipart/form-data"));
        }
        Ok(())
    }
}

fn unknown_parameter(name: &str) -> Reply {
    let message = format!("Unknown parameter: '{name}'.");
    Reply::error(400, "unknown_parameter", &message).about(name)
}

fn check_names(received: &Received) -> Result<(), Reply> {
    let files = received.files.iter().map(|file| file.name.as_str());
    let mut names = received.fields.keys().map(String::as_str).chain(files);
    match names.find(|name| !PARAMETERS.contains(name)) {
        Some(unknown) => Err(unknown_parameter(unknown)),
        None => Ok(()),
    }
}

fn check_values(received: &Received) -> Result<(), Reply> {
    let invalid =
        |param: &str, message: &str| Err(Reply::error(400, "invalid_value", message).about(param));
    if !matches!(received.n(), Some(1..=10)) {
        return invalid("n", "Invalid 'n': expected an integer from 1 to 10.");
    }
    let three = [(1024, 1024), (1536, 1024), (1024, 1536)];
    let model = received.fields.get("model").and_then(Value::as_str);
    let fixed = model.is_some_and(|model| model.starts_with("gpt-image-1"));
    match received.size() {
        None => return invalid("size", "Invalid size: both sides must be divisible by 16."),
        Some(size) if fixed && !three.contains(&size) => {
            return invalid(
                "size",
                "Invalid size: supported are the three of this model.",
            );
        }
        Some(_) => {}
    }
    let images = received.files.iter().filter(|file| file.name != "mask");
    if received.path.ends_with("edits") && !(1..=16).contains(&images.count()) {
        return invalid("image", "Expected 1 to 16 images.");
    }
    let mut files = received.files.iter();
    match files.find(|file| !FILES.contains(&file.name.as_str()) || !file.is_image()) {
        Some(file) => invalid(&file.name, "Invalid image file or mode."),
        None => Ok(()),
    }
}
