//! Merges the sources of settings, key by key, before they are parsed into types.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::{
    issue::ConfigIssue,
    key::{Key, NAMED_SECTIONS, variable_part},
    schema::Given,
};

/// The settings by key, from all sources.
#[derive(Default)]
pub(super) struct Layers {
    /// The merged values: the source of the highest priority wins.
    pub(super) settings: BTreeMap<Key, Setting>,
    /// What is wrong with the sources so far.
    pub(super) issues: Vec<ConfigIssue>,
}

/// A value and its source.
pub(super) struct Setting {
    /// The value, not parsed into its type yet.
    pub(super) given: Given,
    /// The environment variable it came from.
    pub(super) variable: Option<String>,
}

impl Setting {
    /// A value from a TOML file.
    pub(super) fn toml(value: Value) -> Self {
        Self {
            given: Given::Toml(value),
            variable: None,
        }
    }

    fn text(text: &str) -> Self {
        Self {
            given: Given::Text(text.to_owned()),
            variable: None,
        }
    }
}

impl Layers {
    /// The operator's backends replace the default ones, and so do the models.
    pub(super) fn lay_file(&mut self, file: &Table) {
        for section in NAMED_SECTIONS {
            if file.contains_key(section) {
                self.settings.retain(|key, _| key.section() != section);
            }
        }
        self.lay(flatten(file));
    }

    /// `DATABASE_URL`, then the `EASEL_` variables.
    pub(super) fn lay_environment(&mut self, variables: &[(String, String)]) {
        let url = variables.iter().find(|(name, _)| name == "DATABASE_URL");
        // Compose files set a variable to nothing to leave it unset.
        if let Some((name, url)) = url.filter(|(_, url)| !url.is_empty()) {
            self.lay(vec![(
                Key::new(["database", "url"]),
                from_variable(name, url),
            )]);
        }
        let mut layer = Vec::new();
        for (variable, text) in variables {
            let Some(name) = variable
                .to_ascii_uppercase()
                .strip_prefix("EASEL_")
                .map(str::to_owned)
            else {
                continue;
            };
            if is_no_setting(&name) {
                continue;
            }
            match self.key_of_variable(&name) {
                Ok(key) => layer.push((key, from_variable(variable, text))),
                Err(message) => self.issues.push(ConfigIssue::new(variable, message)),
            }
        }
        self.lay(layer);
    }

    /// Adds settings from flags, by dotted keys. They override everything before.
    pub(super) fn lay_overrides(&mut self, overrides: &[(String, String)]) {
        let layer = overrides.iter();
        let layer = layer.map(|(key, text)| (Key::from_dotted(key), Setting::text(text)));
        self.lay(layer.collect());
    }

    /// The operator's names in a section, such as `models`.
    pub(super) fn names(&self, section: &str) -> BTreeSet<String> {
        let keys = self.settings.keys();
        keys.filter(|key| key.section() == section)
            .filter_map(|key| key.name().map(str::to_owned))
            .collect()
    }

    /// The value at a key, if it is text.
    pub(super) fn text(&self, key: &Key) -> Option<&str> {
        match &self.settings.get(key)?.given {
            Given::Text(text) => Some(text),
            Given::Toml(value) => value.as_str(),
        }
    }

    /// Adds one source with a higher priority. A secret and its file are one setting: each replaces the other, and one
    /// source may give only one of them.
    fn lay(&mut self, layer: Vec<(Key, Setting)>) {
        let mut seen = BTreeSet::new();
        for (key, setting) in layer {
            let twin = key.file().or_else(|| key.secret_of_file());
            if let Some(twin) = &twin {
                if seen.contains(twin) {
                    let message = format!("{twin} is given too, only one of them may be");
                    self.issues.push(ConfigIssue::new(&key, message));
                }
                self.settings.remove(twin);
            }
            if !seen.insert(key.clone()) {
                self.issues.push(ConfigIssue::new(&key, "is set twice"));
            }
            self.settings.insert(key, setting);
        }
    }

    /// The key for a variable name, given without `EASEL_` and in capitals.
    fn key_of_variable(&self, name: &str) -> Result<Key, String> {
        let Some((section, rest)) = name.split_once("__") else {
            return Ok(Key::new([&name.to_ascii_lowercase()]));
        };
        let section = section.to_ascii_lowercase();
        let Some((table, leaf)) = rest
            .rsplit_once("__")
            .filter(|_| NAMED_SECTIONS.contains(&section.as_str()))
        else {
            return Ok(Key::new([&section, &rest.to_ascii_lowercase()]));
        };
        let names = self.names(&section);
        let same = |name: &&String| name.eq_ignore_ascii_case(table);
        let alike = |name: &&String| variable_part(name) == variable_part(table);
        let mut found: Vec<&String> = names.iter().filter(same).collect();
        if found.is_empty() {
            found = names.iter().filter(alike).collect();
        }
        match found.as_slice() {
            [name] => Ok(Key::new([&section, name, &leaf.to_ascii_lowercase()])),
            [] => Err(format!(
                "stands for none of the {section}, which are: {}; a file can add one",
                listed(&names)
            )),
            _ => Err(format!(
                "stands for more than one of the {section}: {}",
                listed(found)
            )),
        }
    }
}

/// The names, separated by commas.
pub(super) fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    names.join(", ")
}

/// Each value of a table, by its key. A value in place of a table keeps its key, and so does an empty named table.
pub(super) fn flatten(table: &Table) -> Vec<(Key, Setting)> {
    let mut flat = Vec::new();
    let mut add = |key: Key, value: &Value| flat.push((key, Setting::toml(value.clone())));
    for (section, value) in table {
        let Some(leaves) = value.as_table() else {
            add(Key::new([section]), value);
            continue;
        };
        let is_named = NAMED_SECTIONS.contains(&section.as_str());
        for (leaf, value) in leaves {
            match value.as_table() {
                Some(inner) if is_named && !inner.is_empty() => {
                    for (key, value) in inner {
                        add(Key::new([section, leaf, key]), value);
                    }
                }
                _ => add(Key::new([section, leaf]), value),
            }
        }
    }
    flat
}

fn from_variable(name: &str, text: &str) -> Setting {
    Setting {
        variable: Some(name.to_owned()),
        ..Setting::text(text)
    }
}

/// `EASEL_CONFIG` names the file. Kubernetes sets `EASEL_PORT` and similar variables in every container if a service is
/// called easel.
fn is_no_setting(name: &str) -> bool {
    name == "CONFIG" || name == "PORT" || name.starts_with("PORT_") || name.starts_with("SERVICE_")
}
