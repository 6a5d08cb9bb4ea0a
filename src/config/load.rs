//! Loads the effective settings from their sources, or reports everything wrong with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use toml::{Table, Value};
use url::Url;

use super::{
    Config, ConfigError, ConfigIssue,
    key::{Key, NAMED_SECTIONS},
    layers::{Layers, Setting, flatten, listed},
    schema::{DEFAULTS, Given, Schema},
    validate,
};

/// Shown in place of a secret.
const HIDDEN: &str = "***";

/// The sources of settings besides the embedded defaults. Each overrides the one before.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file, if any.
    pub file: Option<PathBuf>,
    /// All environment variables: see [`Sources::process_environment`].
    pub environment: Vec<(String, String)>,
    /// From flags: a dotted key, such as `server.listen`, and a text.
    pub overrides: Vec<(String, String)>,
}

impl Sources {
    /// The variables of this process.
    pub fn process_environment() -> Vec<(String, String)> {
        std::env::vars_os()
            .map(|(name, value)| {
                let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
                (text(name), text(value))
            })
            .collect()
    }

    /// The data directory if no file sets another one: the records that a gateway left there name the configuration
    /// file.
    pub fn data_dir_without_file(&self) -> Option<PathBuf> {
        let mut layers = Layers::default();
        if let Ok(schema) = Schema::embedded() {
            layers.settings.extend(flatten(&schema.defaults));
        }
        layers.lay_environment(&self.environment);
        layers.lay_overrides(&self.overrides);
        layers.text(&Key::new(["data_dir"])).map(PathBuf::from)
    }
}

impl Config {
    /// The effective settings. The error reports every issue at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let (config, issues) = Self::read(sources)?;
        if issues.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Faults(issues))
        }
    }

    /// The settings and all their issues. A valid default replaces each invalid value.
    pub fn read(sources: &Sources) -> Result<(Self, Vec<ConfigIssue>), ConfigError> {
        let schema = Schema::embedded()
            .map_err(|error| syntax(Path::new("easel.toml"), DEFAULTS, &error))?;
        let file = sources.file.as_deref().map(read_file).transpose()?;

        let mut layers = Layers::default();
        let defaults = flatten(&schema.defaults);
        layers.settings.extend(defaults);
        if let Some(file) = &file {
            layers.lay_file(file);
        }
        layers.lay_environment(&sources.environment);
        layers.lay_overrides(&sources.overrides);

        let table = read_settings(&schema, &mut layers);
        let mut issues = layers.issues;
        let mut config: Self = table.clone().try_into().map_err(|error: toml::de::Error| {
            issues.push(ConfigIssue::new("configuration", error.message()));
            ConfigError::Faults(std::mem::take(&mut issues))
        })?;
        let reported: BTreeSet<String> = issues.iter().map(|issue| issue.key.clone()).collect();
        let is_new = |issue: &ConfigIssue| {
            // A default replaces a value that could not be read, so its issues are not the operator's.
            !reported.contains(&issue.key) && !reported.contains(&format!("{}_file", issue.key))
        };
        issues.extend(validate::issues(&config).into_iter().filter(is_new));

        let used: BTreeSet<String> = config
            .models
            .values()
            .flat_map(|model| &model.routes)
            .map(|route| route.backend.clone())
            .collect();
        config.backends.retain(|name, _| used.contains(name));
        config.in_force = without_secrets(&table, &used);
        config.fingerprints = fingerprints(&table);
        Ok((config, issues))
    }
}

fn fingerprints(table: &Table) -> BTreeMap<String, [u8; 32]> {
    let backends = table.get("backends").and_then(Value::as_table);
    let fingerprint = |settings: &Value| Sha256::digest(settings.to_string()).into();
    let backends = backends.into_iter().flatten();
    backends
        .map(|(name, settings)| (name.clone(), fingerprint(settings)))
        .collect()
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    text.parse().map_err(|error| syntax(path, &text, &error))
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    ConfigError::Syntax {
        path: path.to_owned(),
        line: text
            .bytes()
            .take(start)
            .filter(|byte| *byte == b'\n')
            .count()
            + 1,
        message: error.message().to_owned(),
    }
}

/// Checks and stores every setting. A default replaces an invalid one, so that other issues can be found too.
fn read_settings(schema: &Schema, layers: &mut Layers) -> Table {
    let kinds = complete(schema, layers);
    let mut table = Table::new();
    for section in NAMED_SECTIONS {
        put(&mut table, &Key::new([section]), Value::Table(Table::new()));
    }
    for (key, setting) in &layers.settings {
        let name = key.name().filter(|_| key.section() == "backends");
        let kind = match name.map(|name| kinds.get(name)) {
            Some(None) => continue,
            Some(Some(kind)) => kind.as_str(),
            None => "",
        };
        let checked = match key.secret_of_file() {
            Some(secret) => read_secret(&setting.given).map(|value| (secret, value)),
            None => schema
                .check(key, kind, &setting.given)
                .map(|value| (key.clone(), value)),
        };
        match checked {
            Ok((key, value)) => put(&mut table, &key, value),
            Err(message) => {
                let message = match &setting.variable {
                    Some(variable) => format!("{message} (from {variable})"),
                    None => message,
                };
                layers.issues.push(ConfigIssue::new(key, message));
                let key = key.secret_of_file().unwrap_or_else(|| key.clone());
                if let Some(value) = schema.default(&key, kind) {
                    put(&mut table, &key, value.clone());
                }
            }
        }
    }
    table
}

/// Fills in the defaults of each backend and model, and returns the kinds of the backends that have one.
fn complete(schema: &Schema, layers: &mut Layers) -> BTreeMap<String, String> {
    let mut kinds = BTreeMap::new();
    for name in layers.names("backends") {
        let key = Key::new(["backends", &name, "kind"]);
        let given = layers.text(&key).map(str::to_owned);
        let known = given.filter(|kind| schema.kinds().contains(&kind.as_str()));
        if known.is_none() {
            let message = format!("must be one of: {}", listed(schema.kinds()));
            layers.issues.push(ConfigIssue::new(&key, message));
            // Its other keys cannot be checked. The name is kept for the models that use it.
            layers
                .settings
                .retain(|other, _| other.tables() != key.tables());
        }
        let kind = known.unwrap_or_else(|| "demo".to_owned());
        layers
            .settings
            .insert(key.clone(), Setting::toml(Value::String(kind.clone())));
        fill(layers, &key, schema.template("backends", &kind));
        kinds.insert(name, kind);
    }
    for name in layers.names("models") {
        let key = Key::new(["models", &name, "routes"]);
        if !layers.settings.contains_key(&key) {
            let message = format!("is missing, must be a list of: {}", listed(kinds.keys()));
            layers.issues.push(ConfigIssue::new(&key, message));
            let none = Setting::toml(Value::Array(Vec::new()));
            layers.settings.insert(key.clone(), none);
        }
        fill(layers, &key, schema.template("models", ""));
    }
    kinds
}

fn fill(layers: &mut Layers, beside: &Key, template: Option<&Table>) {
    for (leaf, value) in template.into_iter().flatten() {
        let key = beside.beside(leaf);
        let in_file = key
            .file()
            .is_some_and(|file| layers.settings.contains_key(&file));
        if !in_file {
            let default = || Setting::toml(value.clone());
            layers.settings.entry(key).or_insert_with(default);
        }
    }
}

fn read_secret(given: &Given) -> Result<Value, String> {
    let path = match given {
        Given::Text(path) | Given::Toml(Value::String(path)) => path,
        Given::Toml(_) => return Err("must be the path of a file, in quotes".to_owned()),
    };
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{path} is empty, must hold the secret"));
    }
    Ok(Value::String(secret.to_owned()))
}

fn put(table: &mut Table, key: &Key, value: Value) {
    let mut place = table;
    for part in key.tables() {
        let inner = place
            .entry(part.clone())
            .or_insert_with(|| Value::Table(Table::new()));
        let Some(inner) = inner.as_table_mut() else {
            return;
        };
        place = inner;
    }
    place.insert(key.leaf().to_owned(), value);
}

/// The settings with secrets hidden.
fn without_secrets(table: &Table, used_backends: &BTreeSet<String>) -> Table {
    let mut shown = Table::new();
    for (key, setting) in flatten(table) {
        let unused = key.section() == "backends"
            && key.name().is_some_and(|name| !used_backends.contains(name));
        let Given::Toml(value) = setting.given else {
            continue;
        };
        match value.as_str() {
            _ if unused => {}
            Some("") => put(&mut shown, &key, value),
            Some(url) if key.is_secret() && key.section() == "database" => {
                put(&mut shown, &key, Value::String(masked(url)));
            }
            Some(_) if key.is_secret() => {
                put(&mut shown, &key, Value::String(HIDDEN.to_owned()));
            }
            _ => put(&mut shown, &key, value),
        }
    }
    shown
}

/// A database URL with its password and all parameters hidden, because parameters can contain keys.
fn masked(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return HIDDEN.to_owned();
    };
    if url.query().is_some() {
        url.set_query(Some(HIDDEN));
    }
    let has_password = url.password().is_some();
    if has_password && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    url.to_string()
}
