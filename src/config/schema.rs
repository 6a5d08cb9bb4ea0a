//! The schema of the settings: derived from the embedded defaults, plus the range of every number.

use std::ops::RangeInclusive;

use toml::{Table, Value};

use super::{
    Backend, Billing, Database, Images, Log, Model, References, Routing, Server, Storage, Tasks,
    Uploads, key::Key, route,
};

/// `config/easel.toml`: every key, with its type and default.
pub(super) const DEFAULTS: &str = include_str!("../../config/easel.toml");

/// The model whose keys are the defaults of every other one.
const MODEL_TEMPLATE: &str = "gpt-image-2";

/// The lists of routes. Their default is the list of the template.
pub(super) const ROUTES: &str = "models.*.routes";

const DAY_MS: i64 = 86_400_000;
const GIB: i64 = 1 << 30;

const RANGES: &[(&str, RangeInclusive<i64>)] = &[
    ("server.connections_max", 1..=1_000_000),
    ("server.connections_reserved", 1..=1_000_000),
    ("server.connections_per_address_max", 1..=1_000_000),
    ("server.failures_per_minute_max", 1..=1_000_000),
    ("server.sync_waiters_max", 1..=1_000_000),
    ("server.header_timeout_ms", 1..=DAY_MS),
    ("server.idle_timeout_ms", 1..=DAY_MS),
    ("server.body_idle_timeout_ms", 1..=DAY_MS),
    ("server.body_timeout_ms", 1..=DAY_MS),
    ("server.write_timeout_ms", 1..=DAY_MS),
    ("server.json_bytes_max", 1..=4 * GIB),
    ("server.buffer_bytes_max", 1..=1024 * GIB),
    ("server.account_buffer_bytes_max", 1..=1024 * GIB),
    ("server.body_bytes_per_s_min", 0..=GIB),
    ("server.drain_timeout_ms", 1..=DAY_MS),
    ("database.connections_max", 6..=10_000),
    ("database.connect_timeout_ms", 1..=DAY_MS),
    ("database.transaction_timeout_ms", 100..=DAY_MS),
    // An S3 signature is valid for at most a week.
    ("storage.link_ttl_s", 1..=604_800),
    ("storage.free_bytes_min", 0..=1024 * 1024 * GIB),
    ("storage.held_bytes_max", 1 << 20..=1024 * GIB),
    ("storage.spool_bytes_max", 1 << 20..=1024 * GIB),
    ("storage.inline_bytes_max", 0..=1024 * GIB),
    // One S3 PUT accepts no more.
    ("uploads.bytes_max", 1..=5 * GIB),
    ("uploads.account_bytes_max", 1..=1024 * 1024 * GIB),
    ("uploads.ttl_s", 1..=315_360_000),
    ("uploads.pixels_max", 1..=1_000_000_000),
    ("uploads.side_px_max", 1..=1_000_000),
    // The bytes of an expired upload are deleted within the hour.
    ("uploads.sweep_interval_s", 1..=3_600),
    ("references.count_max", 1..=16),
    ("references.fetches_max", 1..=17),
    ("references.fetch_all_timeout_ms", 1..=DAY_MS),
    ("references.fetched_bytes_max", 1..=1024 * GIB),
    ("references.fetch_timeout_ms", 1..=DAY_MS),
    ("references.connect_timeout_ms", 1..=DAY_MS),
    ("references.idle_timeout_ms", 1..=DAY_MS),
    ("references.redirects_max", 0..=10),
    ("references.failure_delay_step_ms", 1..=DAY_MS),
    ("tasks.deadline_ms", 1_000..=DAY_MS),
    ("tasks.lease_ms", 1_000..=DAY_MS),
    ("tasks.attempts_max", 1..=100),
    ("tasks.running_max", 1..=100_000),
    ("tasks.queued_max", 1..=1_000_000_000),
    ("tasks.account_queued_max", 1..=1_000_000_000),
    ("tasks.account_sync_waiters_max", 1..=1_000_000),
    ("tasks.sync_wait_max_ms", 1..=DAY_MS),
    ("routing.failures_max", 1..=10_000),
    ("routing.open_ms", 1..=DAY_MS),
    ("routing.retry_wait_ms", 1..=DAY_MS),
    ("routing.retry_wait_max_ms", 1..=DAY_MS),
    ("routing.sync_wait_ms", 0..=DAY_MS),
    ("log.buffer_bytes_max", 1024..=GIB),
    ("backends.*.delay_ms", 0..=DAY_MS),
    ("backends.*.failure_percent", 0..=100),
    ("backends.*.native_side_px", 0..=8_192),
    ("backends.*.side_step_px", 8..=256),
    ("backends.*.batch_max", 1..=8),
    ("backends.*.native_side_2k_px", 0..=8_192),
    ("backends.*.poll_interval_ms", 10..=60_000),
    ("models.*.n_max", 1..=10),
    ("models.*.routes.weight", 1..=1_000_000),
    ("models.*.routes.priority", 0..=1_000_000),
    ("models.*.routes.max_concurrency", 0..=1_000_000),
    ("models.*.routes.timeout_ms", 1..=DAY_MS),
];

/// The expected format of parsed texts.
const FORMS: [(&str, &str); 7] = [
    (
        "server.listen",
        "an address and a port, like 127.0.0.1:8080 or [::]:8080, or a port alone",
    ),
    (
        "server.public_url",
        "a URL, like https://images.example.com",
    ),
    (
        "server.trusted_proxies",
        "networks or addresses, like 10.0.0.0/8 or 192.0.2.7",
    ),
    ("storage.url", "a URL, file:///path or s3://bucket/prefix"),
    ("storage.endpoint", "a URL, like https://s3.example.com"),
    (
        "storage.public_endpoint",
        "a URL, like https://s3.example.com",
    ),
    (
        "backends.*.base_url",
        "a URL, like https://api.openai.com/v1",
    ),
];

/// A value as it was given.
#[derive(Clone, Debug)]
pub(super) enum Given {
    /// From the environment or a flag: parsed by the type of the value it overrides.
    Text(String),
    /// From a TOML file, with its type.
    Toml(Value),
}

/// Which settings there are, and their types.
pub(super) struct Schema {
    /// The embedded `config/easel.toml`.
    pub(super) defaults: Table,
}

impl Schema {
    /// Reads the embedded defaults. Fails only if the program was built with an invalid file.
    pub(super) fn embedded() -> Result<Self, toml::de::Error> {
        let defaults = DEFAULTS.parse()?;
        Ok(Self { defaults })
    }

    /// The kinds of backends.
    pub(super) fn kinds(&self) -> Vec<&str> {
        let backends = tables(&self.defaults, "backends");
        backends.filter_map(|(_, table)| kind(table)).collect()
    }

    /// The defaults of a model, or of a backend of this kind.
    pub(super) fn template(&self, section: &str, backend_kind: &str) -> Option<&Table> {
        let is_template = |(name, table): &(&str, &Table)| match section {
            "models" => *name == MODEL_TEMPLATE,
            _ => kind(table) == Some(backend_kind),
        };
        let mut tables = tables(&self.defaults, section);
        tables.find(is_template).map(|(_, table)| table)
    }

    /// The value used if the key is not set; `None`: the key does not exist.
    pub(super) fn default(&self, key: &Key, backend_kind: &str) -> Option<&Value> {
        let value = self.table(key, backend_kind)?.get(key.leaf());
        value.filter(|value| !value.is_table())
    }

    /// The defaults of the table that the key is in.
    fn table(&self, key: &Key, backend_kind: &str) -> Option<&Table> {
        match (key.name(), key.tables()) {
            (Some(_), _) => self.template(key.section(), backend_kind),
            (None, []) => Some(&self.defaults),
            (None, [section]) => self.defaults.get(section)?.as_table(),
            (None, _) => None,
        }
    }

    /// The value, parsed by its type, or what is wrong with it. The error does not show the value, which may be a
    /// secret, unless it must be a number or has a format.
    pub(super) fn check(&self, key: &Key, kind: &str, given: &Given) -> Result<Value, String> {
        let (Some(table), Some(default)) = (self.table(key, kind), self.default(key, kind)) else {
            return Err(self.unknown(key, kind, given));
        };
        let mut value = match given {
            Given::Text(text) => from_text(default, text)?,
            Given::Toml(value) if value.same_type(default) => value.clone(),
            Given::Toml(value) => {
                return Err(format!("must be {}, is {}", a_type(default), a_type(value)));
            }
        };
        if key.pattern() == ROUTES {
            route::complete(&mut value, default);
        }
        if let Some(number) = value.as_integer() {
            in_range(&key.pattern(), number)?;
        }
        if value != *default {
            let mut table = table.clone();
            table.insert(key.leaf().to_owned(), value.clone());
            parse(key.section(), table).map_err(|error| not_in_form(&key.pattern(), &error))?;
        }
        Ok(value)
    }

    /// The message for an unknown key.
    fn unknown(&self, key: &Key, kind: &str, given: &Given) -> String {
        let is_section =
            key.tables().is_empty() && self.defaults.get(key.leaf()).is_some_and(Value::is_table);
        let is_named = key.name().is_none() && super::key::NAMED_SECTIONS.contains(&key.section());
        if is_section || is_named {
            return "must be a table that holds settings".to_owned();
        }
        let siblings = self.table(key, kind).into_iter().flat_map(Table::keys);
        let siblings: Vec<Key> = siblings.map(|leaf| key.beside(leaf)).collect();
        let near = nearest(key, &siblings).or_else(|| nearest(key, &self.fixed_keys()));
        match (near, given) {
            (Some(near), Given::Text(_)) => {
                format!("no such key, the nearest is {near} ({})", near.variable())
            }
            (Some(near), Given::Toml(_)) => format!("no such key, the nearest is {near}"),
            (None, _) => {
                let beside = if siblings.is_empty() {
                    self.fixed_keys()
                } else {
                    siblings
                };
                let mut names: Vec<&str> = beside
                    .iter()
                    .map(|other| {
                        if key.tables().is_empty() {
                            other.section()
                        } else {
                            other.leaf()
                        }
                    })
                    .collect();
                names.dedup();
                format!("no such key, expected one of: {}", names.join(", "))
            }
        }
    }

    /// Every section, and every key that is not in a named table.
    fn fixed_keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        for (section, value) in &self.defaults {
            keys.push(Key::new([section]));
            let leaves = value.as_table().into_iter().flatten();
            let leaves = leaves.filter(|(_, value)| !value.is_table());
            keys.extend(leaves.map(|(leaf, _)| Key::new([section, leaf])));
        }
        keys
    }
}

fn tables<'a>(of: &'a Table, section: &str) -> impl Iterator<Item = (&'a str, &'a Table)> {
    let section = of.get(section).and_then(Value::as_table);
    section
        .into_iter()
        .flatten()
        .filter_map(|(name, table)| Some((name.as_str(), table.as_table()?)))
}

fn kind(backend: &Table) -> Option<&str> {
    backend.get("kind")?.as_str()
}

fn nearest(key: &Key, among: &[Key]) -> Option<Key> {
    let text = key.to_string();
    let near = |other: &Key| strsim::normalized_damerau_levenshtein(&text, &other.to_string());
    among
        .iter()
        .map(|other| (near(other), other))
        .filter(|(nearness, _)| *nearness >= 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, other)| other.clone())
}

fn from_text(default: &Value, text: &str) -> Result<Value, String> {
    let text = text.trim();
    match default {
        Value::Integer(_) => text.replace('_', "").parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let items = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            Some(Value::Array(
                items.map(|item| Value::String(item.to_owned())).collect(),
            ))
        }
        _ => Some(Value::String(text.to_owned())),
    }
    .ok_or_else(|| format!("must be {}", a_type(default)))
}

/// Parses a section, or one of its named tables, into its type. The types decide what their texts and lists may be.
fn parse(section: &str, table: Table) -> Result<(), toml::de::Error> {
    match section {
        "server" => table.try_into::<Server>().map(drop),
        "database" => table.try_into::<Database>().map(drop),
        "storage" => table.try_into::<Storage>().map(drop),
        "uploads" => table.try_into::<Uploads>().map(drop),
        "references" => table.try_into::<References>().map(drop),
        "tasks" => table.try_into::<Tasks>().map(drop),
        "routing" => table.try_into::<Routing>().map(drop),
        "images" => table.try_into::<Images>().map(drop),
        "billing" => table.try_into::<Billing>().map(drop),
        "log" => table.try_into::<Log>().map(drop),
        "backends" => table.try_into::<Backend>().map(drop),
        "models" => table.try_into::<Model>().map(drop),
        // A key without a section is text.
        _ => Ok(()),
    }
}

fn not_in_form(pattern: &str, error: &toml::de::Error) -> String {
    match FORMS.iter().find(|(form, _)| *form == pattern) {
        Some((_, form)) => format!("must be {form}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// Whether a number is within its range; the error states the range. Settings without one accept any number.
pub(super) fn in_range(pattern: &str, number: i64) -> Result<(), String> {
    let range = RANGES.iter().find(|(ranged, _)| *ranged == pattern);
    match range {
        Some((_, range)) if !range.contains(&number) => Err(format!(
            "must be from {} to {}, is {number}",
            range.start(),
            range.end()
        )),
        _ => Ok(()),
    }
}

fn a_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::layers::flatten, *};

    #[test]
    fn every_section_is_parsed() {
        let schema = Schema::embedded().unwrap();
        for (section, _) in schema.defaults.iter().filter(|(_, value)| value.is_table()) {
            assert!(parse(section, Table::new()).is_err(), "{section}");
        }
    }

    #[test]
    fn every_number_has_a_range_that_holds_its_default() {
        let schema = Schema::embedded().unwrap();
        let mut numbers = BTreeSet::new();
        let mut note = |pattern: String, value: &Value| {
            if let Some(number) = value.as_integer() {
                in_range(&pattern, number).unwrap();
                numbers.insert(pattern);
            }
        };
        for (key, setting) in flatten(&schema.defaults) {
            let Given::Toml(value) = setting.given else {
                panic!("{key} is text");
            };
            note(key.pattern(), &value);
            let route = value.get(0).and_then(Value::as_table);
            for (leaf, value) in route.into_iter().flatten() {
                note(format!("{}.{leaf}", key.pattern()), value);
            }
        }
        let ranged = RANGES.iter().map(|(pattern, _)| (*pattern).to_owned());
        assert_eq!(numbers, ranged.collect());
    }
}
