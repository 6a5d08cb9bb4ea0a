//! How the copies of OpenAI's Images API differ from it: all of that is in this table.

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

pub(super) struct Profile {
    pub(super) key: Scheme<'static>,
    pub(super) capabilities: Capabilities,
    pub(super) references: References,
    /// Sent where base64 has to be asked for; OpenAI's own image models refuse to be asked.
    pub(super) response_format: Option<&'static str>,
    pub(super) prompt: &'static [Replaced],
}

/// How references go along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum References {
    /// As the files of an edit's form.
    Edit,
    /// One, as base64 in the `file` of a generation.
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
    pub(super) fn of(profile: OpenaiProfile) -> Self {
        match profile {
            OpenaiProfile::Openai | OpenaiProfile::Generic => OPENAI,
            OpenaiProfile::Azure => Self {
                key: Scheme::Header("api-key"),
                ..OPENAI
            },
            OpenaiProfile::SdServer => Self {
                capabilities: Capabilities {
                    // It generates eight, and says nothing, where more are asked for.
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
