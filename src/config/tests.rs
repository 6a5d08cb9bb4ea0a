//! What operators can write, and what they are told when it is wrong.

mod async_job;
mod backends;
mod routes;

use std::{collections::BTreeSet, fs, time::Duration};

use secrecy::ExposeSecret;

use super::{schema::DEFAULTS, *};

/// A file with this text, beside the given environment.
struct Given {
    sources: Sources,
    dir: tempfile::TempDir,
}

impl Given {
    fn file(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("easel.toml");
        fs::write(&file, text).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Self { sources, dir }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        let variable = (name.to_owned(), value.to_owned());
        self.sources.environment.push(variable);
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        let flag = (key.to_owned(), value.to_owned());
        self.sources.overrides.push(flag);
        self
    }

    fn secret(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn config(&self) -> Config {
        Config::load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn issues(&self) -> Vec<String> {
        match Config::load(&self.sources) {
            Err(ConfigError::Faults(issues)) => issues.iter().map(ToString::to_string).collect(),
            Err(other) => panic!("{other}"),
            Ok(_) => Vec::new(),
        }
    }
}

fn openai<'a>(config: &'a Config, name: &str) -> &'a OpenaiBackend {
    match &config.backends[name] {
        Backend::Openai(backend) => backend,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn the_defaults_load_and_generate_both_demo_models() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.server.public_url(), "http://127.0.0.1:8080");
    assert_eq!(config.tasks.deadline(), Duration::from_mins(10));
    assert!(config.database.url.is_none());
    let models: Vec<_> = config.models.keys().collect();
    assert_eq!(models, ["gemini-3-pro-image-preview", "gpt-image-2"]);
    // No model generates with the other one, so that it needs no key.
    assert_eq!(config.backends.keys().collect::<Vec<_>>(), ["demo"]);
    assert!(config.warnings().is_empty());
}

#[test]
fn every_key_is_documented() {
    let mut commented = false;
    let mut section = String::new();
    let mut undocumented = BTreeSet::new();
    for line in DEFAULTS.lines() {
        if line.starts_with('#') {
            commented = true;
        } else if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            // A comment above a section documents the section alone.
            commented = false;
        } else if let Some((key, _)) = line.split_once(" = ") {
            // The keys of the other models are those of the first.
            let is_repeated = section == "models.gemini-3-pro-image-preview";
            // So is `kind`, the one key that all backends share.
            let is_repeated = is_repeated || (key == "kind" && section != "backends.demo");
            if !commented && !is_repeated {
                undocumented.insert(format!("{section}.{key}"));
            }
        } else if line.is_empty() {
            commented = false;
        }
    }
    assert_eq!(undocumented, BTreeSet::new());
}

#[test]
fn each_layer_lies_over_the_one_before() {
    let listen = |given: &Given| given.config().server.listen.to_string();
    let given = Given::file("data_dir = 'there'\n[server]\nlisten = '127.0.0.1:1'\n");
    assert_eq!(listen(&given), "127.0.0.1:1");
    let given = given.env("easel_server__Listen", "127.0.0.1:2");
    assert_eq!(listen(&given), "127.0.0.1:2");
    let given = given.flag("server.listen", "127.0.0.1:3");
    assert_eq!(listen(&given), "127.0.0.1:3");
    assert_eq!(given.config().data_dir.to_str(), Some("there"));
    let given = given.env("EASEL_DATA_DIR", "here");
    assert_eq!(given.config().data_dir.to_str(), Some("here"));
}

#[test]
fn texts_are_read_by_the_type_they_lie_over() {
    let given = Given::file(
        "[backends.mine]\nkind = 'openai'\n[models.'mine-2.1']\nroutes = [{ backend = 'mine', upstream_model = 'x' }]\n",
    )
    .env("EASEL_BACKENDS__MINE__API_KEY", "sk-1")
    .env("EASEL_BACKENDS__MINE__FORWARD", "background, moderation,")
    .env("EASEL_MODELS__MINE_2_1__PRICE_LOW", "0.15")
    .env("EASEL_MODELS__mine-2.1__ALIASES", "mine, best")
    .env("EASEL_TASKS__RUNNING_MAX", "2_000")
    .flag("models.mine-2.1.n_max", "4");
    let config = given.config();
    let model = &config.models["mine-2.1"];
    assert_eq!(model.price_low.to_string(), "0.15");
    assert_eq!(model.price_high.to_string(), "0.40");
    assert_eq!(model.routes[0].upstream_model, "x");
    assert_eq!(model.aliases, ["mine", "best"]);
    assert_eq!((model.n_max, config.tasks.running_max), (4, 2_000));
    assert_eq!(
        openai(&config, "mine").forward,
        ["background", "moderation"]
    );
}

#[test]
fn an_openai_key_and_a_model_by_environment_are_enough() {
    let given = Given::file("")
        .env("EASEL_BACKENDS__OPENAI__API_KEY", "sk-1")
        .env("EASEL_MODELS__GPT_IMAGE_2__ROUTES", "openai");
    let config = given.config();
    assert_eq!(openai(&config, "openai").api_key.expose_secret(), "sk-1");
    assert_eq!(
        config.models["gemini-3-pro-image-preview"].routes[0].backend,
        "demo"
    );
}

#[test]
fn database_url_lies_between_the_file_and_the_environment() {
    let url = |given: &Given| {
        let config = given.config();
        config
            .database
            .url
            .map(|url| url.expose_secret().to_owned())
    };
    let given = Given::file("[database]\nurl = 'postgres://file/'\n").env("DATABASE_URL", "");
    assert_eq!(url(&given).as_deref(), Some("postgres://file/"));
    let given =
        Given::file("[database]\nurl_file = '/nowhere'\n").env("DATABASE_URL", "postgres://plain/");
    assert_eq!(url(&given).as_deref(), Some("postgres://plain/"));
    let given = given.env("EASEL_DATABASE__URL", "postgres://easel/");
    assert_eq!(url(&given).as_deref(), Some("postgres://easel/"));
}

#[test]
fn a_secret_can_be_in_a_file() {
    let given = Given::file("[models.m]\nroutes = ['openai']\n");
    let path = given.secret("key", "sk-from-file\r\n");
    let given = given.env("EASEL_BACKENDS__OPENAI__API_KEY_FILE", &path);
    let config = given.config();
    assert_eq!(
        openai(&config, "openai").api_key.expose_secret(),
        "sk-from-file"
    );
    assert!(!config.to_toml().contains("sk-from-file"));

    let given = given.env("EASEL_BACKENDS__OPENAI__API_KEY", "sk-2");
    insta::assert_snapshot!(given.issues().join("\n"), @"backends.openai.api_key: backends.openai.api_key_file is given too, only one of them may be");

    let given =
        Given::file("[storage]\nsecret_access_key_file = '/nowhere/s3'\naccess_key_id = 'a'\n");
    insta::assert_snapshot!(given.issues().join("\n"), @"storage.secret_access_key_file: cannot read /nowhere/s3: No such file or directory (os error 2)");
}

/// Each of these is wrong in a way of its own.
const FAULTY: &str = r#"
data_dir = ""
colour = "red"
images = 3

[server]
listn = "127.0.0.1:1"
listen = "localhost"
public_url = "ftp://example.com/?a=b"
json_bytes_max = 500_000_000

[sever]
provider = "x"

[database]
url = "mysql://root:hunter2@db/"

[storage]
url = "s3://"
endpoint = "s3.example.com"
access_key_id = "a"

[references]
count_max = 17

[tasks]
lease_ms = 600_000
attempts_max = "3"

[billing]
time_zone = " "
opening_balance = "-1"

[log]
filter = "easel=loud"
format = "xml"

[backends.demo]
kind = "demo"
failure_percent = 101
api_key = "hunter2"

[backends.mine]
kind = "openai"
base_url = "https://hunter2@upstream/v1"

[backends.odd]
kind = "opnai"
base_url = 3

[models.a]
routes = ["x"]
price_low = 0.1
price_high = "1e3"
n_max = 11

[models."b/c"]
routes = ["mine"]

[models.d]
owned_by = "me"

[models.e]
"#;

#[test]
fn every_fault_is_reported_at_once() {
    let given = Given::file(FAULTY)
        .env("EASEL_TASKS__DEADLINE_MS", "soon")
        .env("EASEL_SERVER_PROVIDER", "x")
        .env("EASEL_MODELS__NONE__N_MAX", "1")
        .env("EASEL_STORAGE__PATHSTYLE", "true")
        .env("EASEL_PORT_8080_TCP", "tcp://10.0.0.1:8080");
    let issues = given.issues().join("\n");
    assert!(!issues.contains("hunter2"));
    insta::assert_snapshot!(issues, @r#"
    EASEL_MODELS__NONE__N_MAX: stands for none of the models, which are: a, b/c, d; a file can add one
    backends.odd.kind: must be one of: async_job, comfyui, demo, gemini, openai, sdapi
    models.d.routes: is missing, must be a list of: demo, mine, odd
    backends.demo.api_key: no such key, expected one of: delay_ms, failure_percent, kind
    backends.demo.failure_percent: must be from 0 to 100, is 101
    colour: no such key, expected one of: backends, billing, data_dir, database, images, log, models, references, routing, server, storage, tasks, uploads
    images: must be a table that holds settings
    log.format: unknown variant `xml`, expected `text` or `json`
    models.a.n_max: must be from 1 to 10, is 11
    models.a.price_high: "1e3" is not an amount of CNY: must be a number with at most six decimals, like 0.20
    models.a.price_low: must be text in quotes, is a number with a point
    models.e: must be a table that holds settings
    references.count_max: must be from 1 to 16, is 17
    server.listen: must be an address and a port, like 127.0.0.1:8080 or [::]:8080, or a port alone: invalid socket address syntax
    server.listn: no such key, the nearest is server.listen
    server_provider: no such key, the nearest is server.provider (EASEL_SERVER__PROVIDER) (from EASEL_SERVER_PROVIDER)
    sever.provider: no such key, the nearest is server.provider
    storage.endpoint: must be a URL, like https://s3.example.com: relative URL without a base: "s3.example.com"
    storage.pathstyle: no such key, the nearest is storage.path_style (EASEL_STORAGE__PATH_STYLE) (from EASEL_STORAGE__PATHSTYLE)
    tasks.attempts_max: must be a whole number, is text in quotes
    tasks.deadline_ms: must be a whole number (from EASEL_TASKS__DEADLINE_MS)
    data_dir: must be the path of a directory
    server.public_url: must be an http:// or https:// URL without user, password, query and fragment
    server.json_bytes_max: must be at most server.account_buffer_bytes_max, 67108864, is 500000000
    database.url: must be a postgres:// URL, like postgres://user:password@host/name
    storage.url: must be file:///path, s3://bucket or s3://bucket/prefix, of letters, digits and - . _ /
    storage.secret_access_key: is missing, though storage.access_key_id is set
    tasks.lease_ms: must be less than tasks.deadline_ms, 600000, is 600000
    billing.time_zone: must be a name of the tz database, like Asia/Shanghai or UTC
    billing.opening_balance: must be at least 0, is -1.00
    log.filter: must be a filter, like info or easel=debug,warn: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    models.a.routes: there is no backend "x", configured are: demo, mine, odd
    models.b/c: a name has letters, digits, '.', '-' and '_', and begins with a letter or digit
    backends.mine.base_url: must be an http:// or https:// URL without user, password, query and fragment
    backends.mine.api_key: is missing: set it, api_key_file, or EASEL_BACKENDS__MINE__API_KEY
    "#);
}

#[test]
fn an_unusable_file_is_named_without_its_text() {
    let mut given = Given::file("[database]\nurl = \"postgres://a:hunter2@db\n");
    let path = given.sources.file.clone().unwrap();
    let error = Config::load(&given.sources).unwrap_err().to_string();
    assert!(!error.contains("hunter2"));
    insta::assert_snapshot!(error.replace(path.to_str().unwrap(), "[file]"), @r#"the configuration file [file] is not TOML: line 2: invalid basic string, expected `"`"#);

    given.sources.file = Some("/nowhere/easel.toml".into());
    let error = Config::load(&given.sources).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"cannot read the configuration file /nowhere/easel.toml");
}

#[test]
fn what_is_printed_shows_no_secret_and_can_be_loaded() {
    let given = Given::file(
        "[models.m]\nroutes = ['openai']\n[storage]\naccess_key_id = 'id'\nsecret_access_key = 'hunter2'\n",
    )
    .env("DATABASE_URL", "postgres://easel:hunter2@db/easel?sslkey=hunter2")
    .env("EASEL_BACKENDS__OPENAI__API_KEY", "hunter2");
    let printed = given.config().to_toml();
    assert!(!printed.contains("hunter2"));
    assert!(
        printed.contains("url = \"postgres://easel:***@db/easel?***\""),
        "{printed}"
    );
    assert!(
        printed.contains("\n[[models.m.routes]]\nbackend = \"openai\"\n"),
        "{printed}"
    );
    assert!(printed.contains("\ntimeout_ms = 600000\n"), "{printed}");
    assert!(!printed.contains("demo"), "{printed}");
    assert!(!format!("{:?}", given.config()).contains("hunter2"));
    assert_eq!(Given::file(&printed).config().to_toml(), printed);
}

#[test]
fn an_address_others_can_reach_asks_for_a_public_url() {
    let given = Given::file("").flag("server.listen", "0.0.0.0:8080");
    assert_eq!(given.config().warnings().len(), 1);
    let given = given.env(
        "EASEL_SERVER__PUBLIC_URL",
        "https://images.example.com/easel/",
    );
    let config = given.config();
    assert!(config.warnings().is_empty());
    assert_eq!(
        config.server.public_url(),
        "https://images.example.com/easel"
    );
}
