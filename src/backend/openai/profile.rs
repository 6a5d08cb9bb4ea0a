//! The differences between OpenAI's Images API and its copies, all in one table.

use crate::{
    backend::{
        Capabilities,
        upstream::{
            endpoint::Scheme,
            prompt::{self, Replaced},
        },
    },
    config::OpenaiProfile,
};

/// How one of the copies differs.
pub(super) struct Profile {
    /// How the key is sent.
    pub(super) key: Scheme<'static>,
    /// The limits of a request.
    pub(super) capabilities: Capabilities,
    /// How references are sent.
    pub(super) references: References,
    /// Sent to upstreams that return base64 only on request; OpenAI's own image models reject the field.
    pub(super) response_format: Option<&'static str>,
    /// Replacements in prompts.
    pub(super) prompt: &'static [Replaced],
}

/// How references are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum References {
    /// As the files of an edit's form.
    Edit,
    /// A single one, as base64 in the `file` field of a generation.
    File,
}

const OPENAI: Profile = Profile {
    key: Scheme::Authorization("Bearer"),
    capabilities: Capabilities {
        n_max: 10,
        references_max: 16,
        mask: true,
    },
    references: References::Edit,
    response_format: None,
    prompt: &[],
};

impl Profile {
    /// The row of the table.
    pub(super) fn of(profile: OpenaiProfile) -> Self {
        match profile {
            OpenaiProfile::Openai | OpenaiProfile::Generic => OPENAI,
            OpenaiProfile::Azure => Self {
                key: Scheme::Header("api-key"),
                ..OPENAI
            },
            OpenaiProfile::SdServer => Self {
                capabilities: Capabilities {
                    // It silently generates eight if more are requested.
                    n_max: 8,
                    ..OPENAI.capabilities
                },
                prompt: &[prompt::SD_SERVER],
                ..OPENAI
            },
            OpenaiProfile::Localai => Self {
                capabilities: Capabilities {
                    references_max: 1,
                    mask: false,
                    ..OPENAI.capabilities
                },
                references: References::File,
                response_format: Some("b64_json"),
                prompt: &[prompt::LOCALAI],
                ..OPENAI
            },
        }
    }
}
