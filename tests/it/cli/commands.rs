//! Every command, both while a gateway runs on the same data directory and while none does.

use serde_json::Value;
use sqlx::Executor;

use crate::harness::{
    caller::{Answer, http_client},
    database::TestDatabase,
    process::{Ran, Setup},
};

async fn get(url: &str, path: &str, key: &str) -> Answer {
    Answer::of(http_client().get(format!("{url}{path}")).bearer_auth(key)).await
}

async fn generate(url: &str, key: &str) -> Answer {
    let body = serde_json::json!({"model": "gpt-image-2", "prompt": "a cat", "n": 2});
    let request = http_client().post(format!("{url}/v1/images/generations"));
    Answer::of(request.bearer_auth(key).json(&body)).await
}

/// The cells of the table row that starts with a word.
fn row<'a>(table: &'a str, start: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.contains(start));
    line.unwrap_or_else(|| panic!("no {start} in {table}"))
        .split_whitespace()
        .collect()
}

#[tokio::test]
async fn commands_work_on_a_private_database_whether_a_gateway_runs_or_not() {
    let setup = Setup::new("");
    setup.serve().end();
    // No gateway runs.
    assert_eq!(
        setup.run(&["migrate"]).good(),
        "the database schema is up to date\n"
    );
    let created = setup.run(&[
        "accounts",
        "create",
        "studio",
        "--balance",
        "5",
        "--monthly-quota",
        "3",
    ]);
    assert_eq!(
        created.good(),
        "created the account \"studio\" with 5.00 CNY\n"
    );

    let gateway = setup.serve();
    let url = gateway.url();
    std::fs::remove_file(setup.data_dir().join("first-key")).unwrap();
    let key = setup
        .run(&["keys", "create", "--account", "studio", "--name", "ci"])
        .good();
    let key = key.strip_suffix('\n').unwrap();
    assert!(!key.contains(char::is_whitespace));
    assert_eq!(generate(&url, key).await.status, 200);
    let topped_up = setup.run(&["accounts", "top-up", "studio", "12.50"]).good();
    assert_eq!(topped_up, "\"studio\" now has 17.10 CNY\n");
    let balance = get(&url, "/v1/balance", key).await.json();
    assert_eq!(
        (&balance["balance"], &balance["monthly_quota"]),
        (&17.1.into(), &3.0.into())
    );

    let shown = setup.run(&["accounts", "show", "studio"]).good();
    assert_eq!(
        row(&shown, "studio"),
        ["studio", "17.10", "0.00", "0.40", "0.40", "3.00", "enabled"]
    );
    setup.run(&["accounts", "disable", "studio"]).good();
    assert_eq!(generate(&url, key).await.status, 401);
    setup.run(&["accounts", "enable", "studio"]).good();
    assert_eq!(generate(&url, key).await.status, 200);
    let doctor = setup.run(&["doctor"]).good();
    assert!(
        doctor.lines().all(|line| line.starts_with("ok    ")),
        "{doctor}"
    );
    for subject in ["database", "storage", "backend demo", "ledger"] {
        assert!(doctor.contains(&format!("ok    {subject}: ")), "{doctor}");
    }
    gateway.end();

    // No gateway runs any more.
    let usage = setup.run(&["usage", "--account", "studio"]).good();
    assert!(usage.ends_with("2 tasks, 0.80 CNY\n"), "{usage}");
    assert_eq!(
        row(&setup.run(&["accounts", "list"]).good(), "studio")[1],
        "16.70"
    );
    setup.run(&["doctor"]).good();
}

#[tokio::test]
async fn keys_are_listed_without_secrets_and_revoked_by_id_or_secret() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let gateway = setup.serve();
    setup
        .run(&["accounts", "create", "studio", "--balance", "5"])
        .good();
    let create = |name: &str, more: &[&str]| {
        let arguments = [
            &["keys", "create", "--account", "studio", "--name", name],
            more,
        ]
        .concat();
        setup.run(&arguments).good().trim().to_owned()
    };
    let limits = [
        "--rpm",
        "60",
        "--concurrency",
        "4",
        "--expires",
        "2199-01-31",
        "--inline-images",
        "always",
    ];
    let (first, second) = (create("first", &limits), create("second", &[]));

    let listed = setup.run(&["keys", "list", "--account", "studio"]).good();
    let cells = row(&listed, "first");
    assert_eq!(
        cells[4..],
        ["60", "4", "always", "2199-01-31", "valid"],
        "{listed}"
    );
    assert!(!listed.contains(&first) && !listed.contains(&second));
    for key in [&first, &second] {
        assert_eq!(get(&gateway.url(), "/v1/balance", key).await.status, 200);
    }
    setup.run(&["keys", "revoke", cells[0]]).good();
    setup.run(&["keys", "revoke", &second]).good();
    for key in [&first, &second] {
        assert_eq!(generate(&gateway.url(), key).await.status, 401);
    }
    let listed = setup.run(&["keys", "list"]).good();
    assert_eq!(listed.matches("revoked").count(), 2, "{listed}");
    let unknown = setup.run(&["keys", "revoke", "sk-nobody"]).bad();
    assert!(unknown.starts_with("easel: no such key"), "{unknown}");
    gateway.end();
}

#[tokio::test]
async fn usage_is_printed_as_table_json_and_csv() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "5").await;
    assert_eq!(generate(&caller.url, &caller.key).await.status, 200);
    gateway.end();
    let usage = |more: &[&str]| {
        let arguments = [&["usage", "--account", &caller.account], more].concat();
        setup.run(&arguments).good()
    };

    let json = usage(&["--format", "json"]);
    assert_eq!(json.lines().count(), 1);
    let record: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&record["cost"], &record["api_key"]),
        (&0.4.into(), &"test".into())
    );
    let csv = usage(&["--format", "csv"]);
    let (head, line) = csv.split_once("\r\n").unwrap();
    assert_eq!(
        head,
        "TASK,ACCEPTED,MODEL,QUALITY,SIZE,STATUS,IMAGES,COST CNY,KEY"
    );
    assert!(line.starts_with(record["id"].as_str().unwrap()), "{line}");
    assert!(
        line.ends_with(",gpt-image-2,medium,1:1 1k,completed,2,0.40,test\r\n"),
        "{line}"
    );
    let table = usage(&[]);
    assert!(
        table.ends_with("1 tasks, 0.40 CNY\n") || table.ends_with("1 task, 0.40 CNY\n"),
        "{table}"
    );

    let nothing = |more: &[&str]| usage(more).ends_with("0 tasks, 0.00 CNY\n");
    assert!(nothing(&["--since", "2199-01-01"]));
    assert!(nothing(&["--until", "2020-01-01T00:00:00Z"]));
    assert!(!nothing(&[
        "--since",
        "2020-01-01",
        "--until",
        "2199-01-01"
    ]));
}

#[tokio::test]
async fn unknown_accounts_and_bad_amounts_are_refused_in_one_line() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    setup
        .run(&["accounts", "create", "studio", "--balance", "1"])
        .good();
    let unknown = "easel: there is no account \"nobody\": `easel accounts list` shows all\n";
    for arguments in [
        &["accounts", "show", "nobody"][..],
        &["accounts", "top-up", "nobody", "1"],
        &["accounts", "disable", "nobody"],
        &["accounts", "enable", "nobody"],
        &["keys", "create", "--account", "nobody"],
        &["usage", "--account", "nobody"],
    ] {
        let ran = setup.run(arguments);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.bad(), unknown, "{arguments:?}");
    }
    let twice = setup.run(&["accounts", "create", "studio"]).bad();
    assert_eq!(twice, "easel: account \"studio\" already exists\n");
    let too_much = setup.run(&["accounts", "top-up", "studio", "-2"]).bad();
    assert_eq!(too_much.lines().count(), 1, "{too_much}");
    for bad in [
        &["accounts", "top-up", "studio", "lots"][..],
        &["usage", "--account", "studio", "--since", "yesterday"],
        &["accounts", "paint"],
    ] {
        assert_eq!(setup.run(bad).code, Some(2), "{bad:?}");
    }
}

#[test]
fn settings_are_checked_all_at_once_and_printed_without_secrets() {
    let setup = Setup::new("[tasks]\nlease_ms = 5\n[server]\nlisten = \"nowhere\"\ncolour = 1");
    let said = setup.run(&["config", "check"]).bad();
    for key in ["tasks.lease_ms: ", "server.listen: ", "server.colour: "] {
        assert!(said.contains(key), "{said}");
    }

    let setup = Setup::new(
        "[backends.up]\nkind = \"openai\"\napi_key = \"sk-hidden\"\n[models.m]\nroutes = [\"up\"]",
    )
    .env("DATABASE_URL", "postgres://easel:hunter2@127.0.0.1:9/easel")
    .env("EASEL_TASKS__LEASE_MS", "7000");
    assert_eq!(
        setup.run(&["config", "check"]).good(),
        "the settings are valid\n"
    );
    let printed = setup.run(&["config", "print"]).good();
    assert!(
        !printed.contains("sk-hidden") && !printed.contains("hunter2"),
        "{printed}"
    );
    let settings: toml::Table = printed.parse().unwrap();
    assert_eq!(settings["tasks"]["lease_ms"].as_integer(), Some(7000));
    let unknown = setup
        .env("EASEL_TASKS__COLOUR", "red")
        .run(&["config", "print"]);
    assert!(unknown.bad().contains("EASEL_TASKS__COLOUR"));
}

#[tokio::test]
async fn doctor_and_healthcheck_report_what_does_not_work() {
    let database = TestDatabase::create().await;
    let settings = "[backends.up]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key = \"k\"\n[models.m]\nroutes = [\"up\"]";
    let setup = Setup::on(&database, settings);
    let Ran { code, stdout, .. } = setup.run(&["doctor"]);
    assert_eq!(code, Some(1));
    assert!(stdout.contains("FAIL  backend up: "), "{stdout}");
    assert!(stdout.contains("ok    database: PostgreSQL"), "{stdout}");

    let gateway = setup.serve();
    let address = gateway.url().replace("http://", "");
    let healthcheck = setup.clone().env("EASEL_SERVER__LISTEN", &address);
    assert_eq!(healthcheck.run(&["healthcheck"]).good(), "ready\n");
    gateway.end();
    let said = healthcheck.run(&["healthcheck"]).bad();
    assert!(
        said.starts_with(&format!("easel: nothing listens on {address}")),
        "{said}"
    );
}

#[test]
fn flags_are_accepted_anywhere_and_help_shows_examples() {
    let setup = Setup::new("");
    let other = setup.dir.path().join("other");
    let other = other.to_str().unwrap();
    // The last value counts, which follows the subcommand.
    let printed = |arguments: &[&str]| -> toml::Table {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_easel"));
        let command = command.env_clear().current_dir(setup.dir.path());
        let ran: Ran = command.args(arguments).output().unwrap().into();
        ran.good().parse().unwrap()
    };
    for arguments in [
        &["--data-dir", other, "--log", "warn", "config", "print"],
        &["config", "--data-dir", other, "print", "--log", "warn"],
        &["config", "print", "--log", "warn", "--data-dir", other],
    ] {
        let settings = printed(arguments);
        assert_eq!(settings["data_dir"].as_str(), Some(other));
        assert_eq!(settings["log"]["filter"].as_str(), Some("warn"));
    }
    let help = setup.run(&["--help"]).good();
    assert!(help.contains("Examples:\n  easel "), "{help}");
    assert!(help.contains("EASEL_CONFIG"), "{help}");
    for command in [
        &["accounts", "create"][..],
        &["accounts", "top-up"],
        &["keys", "create"],
        &["usage"],
    ] {
        let help = setup.run(&[command, &["--help"]].concat()).good();
        assert!(help.contains("Example:\n  "), "{command:?}: {help}");
    }
}

#[tokio::test]
async fn the_doctor_tells_which_settings_of_a_foreign_server_risk_data_or_cost_time() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    setup.serve().end();
    let fine = setup.run(&["doctor"]).good();
    assert_eq!(fine.matches("  database: ").count(), 1, "{fine}");

    let mut conn = database.connect().await;
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let change = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    conn.execute(sqlx::AssertSqlSafe(change)).await.unwrap();
    let told = setup.run(&["doctor"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    let line = "FAIL  database: synchronous_commit = off: \
        a crash of the server loses requests that were acknowledged";
    assert!(told.stdout.lines().any(|told| told == line), "{told:?}");
}
