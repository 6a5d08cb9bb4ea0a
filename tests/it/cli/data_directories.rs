//! Which data directory, configuration and gateway a command uses, and that no command creates one.

use std::{net::TcpListener, path::Path, process::Command};

use crate::harness::{
    database::TestDatabase,
    process::{Ran, Setup},
};

/// Runs the program in a directory, with only these arguments and variables.
fn easel(dir: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_easel"));
    command.env_clear().current_dir(dir).args(arguments);
    for name in ["PATH", "PG_BIN", "LD_LIBRARY_PATH"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let output = command.envs(variables.iter().copied()).output();
    output.unwrap().into()
}

#[test]
fn commands_create_nothing_in_an_empty_folder_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["accounts", "list"][..],
        &["accounts", "create", "studio"],
        &["keys", "list"],
        &["usage", "--account", "studio"],
        &["config", "reload"],
        &["migrate"],
    ] {
        let said = easel(dir.path(), &[], arguments).bad();
        let expected = format!(
            "easel: there is no database in {}/data: `easel serve` creates one there; choose another with \
             --data-dir, by --config or EASEL_CONFIG, or by DATABASE_URL\n",
            dir.path().display()
        );
        assert_eq!(said, expected, "{arguments:?}");
    }
    let doctor = easel(dir.path(), &[], &["doctor"]);
    assert_eq!(doctor.code, Some(1));
    let expected = "FAIL  database: there is no database in ";
    assert!(doctor.stdout.contains(expected), "{doctor:?}");
    let made = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(made, 0, "a command has made something");
}

#[tokio::test]
async fn serve_reports_its_new_database_and_remembers_its_configuration() {
    let setup = Setup::new("[models.only-one]\nroutes = ['demo']");
    let gateway = setup.serve();
    let said = gateway.wait_said("image.png\n");
    let data_dir = setup.data_dir();
    let made = format!(
        "Its data directory is {}, with a new database.\n",
        data_dir.display()
    );
    assert!(said.contains(&made), "{said}");
    let data_dir = data_dir.to_str().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let there = ["--data-dir", data_dir];
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        easel(elsewhere.path(), variables, arguments)
    };
    let models = |variables: &[(&str, &str)], arguments: &[&str]| {
        let printed = run(variables, arguments).good();
        let settings: toml::Table = printed.parse().unwrap();
        let models = settings["models"].as_table().unwrap();
        models.keys().cloned().collect::<Vec<String>>().join(" ")
    };

    // The flag, the variable, and the gateway's own; while it runs, and afterwards.
    let print = [&there[..], &["config", "print"]].concat();
    assert_eq!(models(&[], &print), "only-one");
    let other = elsewhere.path().join("other.toml");
    std::fs::write(&other, "[models.other]\nroutes = ['demo']").unwrap();
    let other = other.to_str().unwrap();
    assert_eq!(models(&[("EASEL_CONFIG", other)], &print), "other");
    let with_flag = [&print[..], &["--config", other]].concat();
    assert_eq!(models(&[], &with_flag), "other");
    assert_eq!(models(&[("EASEL_CONFIG", "")], &print), "only-one");
    assert_eq!(
        models(&[("EASEL_DATA_DIR", data_dir)], &["config", "print"]),
        "only-one"
    );
    assert_eq!(
        models(&[], &["config", "print"]),
        "gemini-3-pro-image-preview gpt-image-2"
    );
    let list = [&there[..], &["accounts", "list"]].concat();
    assert!(run(&[], &list).good().contains("default"));
    gateway.end();
    assert!(run(&[], &list).good().contains("default"));
    assert_eq!(models(&[], &print), "only-one");

    // The output names the file of the first key, not the key.
    let keys = run(&[], &[&there[..], &["keys", "list"]].concat());
    let note = format!("note: the first key is in {data_dir}/first-key; keep it elsewhere");
    assert!(keys.stderr.starts_with(&note), "{keys:?}");
    let doctor = run(&[], &[&there[..], &["doctor"]].concat()).good();
    let note = format!("note  first key: is in {data_dir}/first-key;");
    assert!(doctor.contains(&note), "{doctor}");
    let gateway = format!("note  gateway: none runs on {data_dir}\n");
    assert!(doctor.contains(&gateway), "{doctor}");
}

/// Two gateways; the settings of one doctor point at the other gateway by default.
#[tokio::test]
async fn doctor_checks_only_the_gateway_of_its_data_directory() {
    let settings = |backend: &str| {
        format!("[backends.{backend}]\nkind = 'demo'\n[models.m]\nroutes = ['{backend}']")
    };
    let (one, other) = (TestDatabase::create().await, TestDatabase::create().await);
    let other = Setup::on(&other, &settings("other"));
    std::fs::create_dir(other.data_dir()).unwrap();
    let stranger = other.serve();
    let address = stranger.url().replace("http://", "");
    let one = Setup::on(&one, &settings("one")).env("EASEL_SERVER__LISTEN", &address);
    std::fs::create_dir(one.data_dir()).unwrap();

    let alone = one.run(&["doctor"]).good();
    assert!(alone.contains("note  gateway: none runs on "), "{alone}");
    assert!(!alone.contains("other"), "{alone}");
    let gateway = one.serve();
    let both = one.run(&["doctor"]).good();
    assert!(
        both.contains("ok    gateway, backend one: in use\n"),
        "{both}"
    );
    assert!(!both.contains("other"), "{both}");
    gateway.kill();
    let alone = one.run(&["doctor"]).good();
    assert!(alone.contains("note  gateway: none runs on "), "{alone}");
    stranger.end();
}

#[tokio::test]
async fn an_address_can_be_a_port_or_localhost() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    for form in ["{}", ":{}", "localhost:{}", "127.0.0.1:{}"] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = port.local_addr().unwrap().port().to_string();
        drop(port);
        let gateway = setup.spawn(&["serve", "--listen", &form.replace("{}", &number)]);
        gateway.wait_ready();
        assert_eq!(
            gateway.url(),
            format!("http://127.0.0.1:{number}"),
            "{form}"
        );
        gateway.end();
    }
    for wrong in ["nowhere", "example.com:8080", "70000", "localhost8080", ""] {
        let said = setup.run(&["serve", "--listen", wrong]).bad();
        let expected = "server.listen: must be an address and a port";
        assert!(said.contains(expected), "{wrong}: {said}");
    }
}

#[test]
fn the_quiet_log_of_commands_is_not_shown_as_a_setting() {
    let filter = |setup: &Setup, arguments: &[&str]| {
        let printed = setup.run(arguments).good();
        let settings: toml::Table = printed.parse().unwrap();
        settings["log"]["filter"].as_str().unwrap().to_owned()
    };
    let setup = Setup::new("[log]\nfilter = 'easel=debug'");
    assert_eq!(filter(&setup, &["config", "print"]), "easel=debug");
    assert_eq!(
        filter(&setup, &["--log", "warn", "config", "print"]),
        "warn"
    );
    assert_eq!(filter(&Setup::new(""), &["config", "print"]), "info");
}

#[test]
fn the_check_reports_a_backend_without_a_key_once_among_all_faults() {
    let setup = Setup::new(
        "[backends.far]\nkind = 'async_job'\nprofile = 'replicate'\n[backends.near]\nkind = 'async_job'\n\
         [backends.flow]\nkind = 'comfyui'\ntext_workflow = 'builtin:none'\n[tasks]\nlease_ms = 5\n\
         [models.m]\nroutes = ['far', 'near', 'flow']",
    );
    let said = setup.run(&["config", "check"]).bad();
    for once in [
        "backends.far: api_key is missing, set it or api_key_file",
        "backends.near.profile: must be set, or protocol_file, and not both",
        "backends.flow.text_workflow: unknown workflow builtin:none",
        "tasks.lease_ms: must be from 1000",
    ] {
        assert_eq!(said.matches(once).count(), 1, "{once}: {said}");
    }
    assert_eq!(said.lines().count(), 5, "{said}");
    // Also where it is the only fault.
    let setup = Setup::new(
        "[backends.far]\nkind = 'async_job'\nprofile = 'replicate'\n[models.m]\nroutes = ['far']",
    );
    let said = setup.run(&["config", "check"]).bad();
    assert_eq!(said.matches("api_key").count(), 2, "{said}");
}

#[test]
fn system_errors_are_printed_once() {
    let setup = Setup::new("[database]\nconnect_timeout_ms = 500")
        .env("DATABASE_URL", "postgres://easel@127.0.0.1:9/easel");
    let said = setup.run(&["accounts", "list"]).bad();
    assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    let settings = "[backends.up]\nkind = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\napi_key = 'k'\n\
                    [models.m]\nroutes = ['up']";
    let doctor = Setup::new(settings).run(&["doctor"]);
    let line = doctor
        .stdout
        .lines()
        .find(|line| line.contains("backend up"));
    assert_eq!(
        line.unwrap().matches("Connection refused").count(),
        1,
        "{doctor:?}"
    );
}
