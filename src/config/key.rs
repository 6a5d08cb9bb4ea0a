//! The key of a setting: `data_dir`, `server.listen` or `models.gpt-image-2.price_low`.

use std::fmt;

/// The sections whose tables have names chosen by the operator.
pub(super) const NAMED_SECTIONS: [&str; 2] = ["backends", "models"];

/// Settings that are never shown and can be read from a file.
const SECRETS: [&str; 3] = [
    "database.url",
    "storage.secret_access_key",
    "backends.*.api_key",
];

/// The suffix of keys that name a secret's file.
const FILE_SUFFIX: &str = "_file";

/// The parts between the dots. An operator's name is one part, even if it contains dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Vec<String>);

impl Key {
    /// The key of these parts, outermost first.
    pub(super) fn new<const N: usize>(parts: [&str; N]) -> Self {
        Self(parts.map(str::to_owned).to_vec())
    }

    /// Parses `models.gpt-5.1.backend`: a model name may contain dots, a key never does.
    pub(super) fn from_dotted(text: &str) -> Self {
        let Some((section, rest)) = text.split_once('.') else {
            return Self::new([text]);
        };
        match rest.rsplit_once('.') {
            Some((name, leaf)) if NAMED_SECTIONS.contains(&section) => {
                Self::new([section, name, leaf])
            }
            _ => Self::new([section, rest]),
        }
    }

    /// The first part.
    pub(super) fn section(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// The last part.
    pub(super) fn leaf(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// The operator's name of the table it is in, such as `gpt-image-2`.
    pub(super) fn name(&self) -> Option<&str> {
        match self.0.as_slice() {
            [section, name, _] if NAMED_SECTIONS.contains(&section.as_str()) => Some(name),
            _ => None,
        }
    }

    /// The tables it is in, outermost first.
    pub(super) fn tables(&self) -> &[String] {
        self.0.split_last().map_or(&[], |(_, tables)| tables)
    }

    /// The key `leaf` in the same table.
    pub(super) fn beside(&self, leaf: &str) -> Self {
        let mut parts = self.tables().to_vec();
        parts.push(leaf.to_owned());
        Self(parts)
    }

    /// The key with `*` for the operator's name: `models.*.price_low`.
    pub(super) fn pattern(&self) -> String {
        match self.name() {
            Some(_) => format!("{}.*.{}", self.section(), self.leaf()),
            None => self.to_string(),
        }
    }

    /// Whether its value is a secret, which is never printed.
    pub(super) fn is_secret(&self) -> bool {
        SECRETS.contains(&self.pattern().as_str())
    }

    /// `database.url_file` for `database.url`; `None` if it is not a secret.
    pub(super) fn file(&self) -> Option<Self> {
        self.is_secret()
            .then(|| self.beside(&format!("{}{FILE_SUFFIX}", self.leaf())))
    }

    /// `database.url` for `database.url_file`; `None` if it does not name a secret's file.
    pub(super) fn secret_of_file(&self) -> Option<Self> {
        let secret = self.beside(self.leaf().strip_suffix(FILE_SUFFIX)?);
        secret.is_secret().then_some(secret)
    }

    /// Its environment variable: `EASEL_MODELS__GPT_IMAGE_2__PRICE_LOW`.
    pub(super) fn variable(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| variable_part(part)).collect();
        format!("EASEL_{}", parts.join("__"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// A part of a key as in a variable name. Characters invalid there become underscores.
pub(super) fn variable_part(part: &str) -> String {
    part.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}
