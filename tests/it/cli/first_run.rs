//! The first start on an empty data directory, and what can make a start fail.

use std::{
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{
    caller::{Answer, http_client},
    process::{Process, Setup},
    say,
};

/// The line that the reader should paste.
fn curl_line(said: &str) -> &str {
    let line = said.lines().find(|line| line.trim().starts_with("curl "));
    line.unwrap_or_else(|| panic!("no curl line in {said}"))
        .trim()
}

/// The error of a failed start: one line, after the log.
#[track_caller]
fn last_words(process: &Process) -> String {
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.stderr());
    let said = process.stderr();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_owned()
}

async fn balance(url: &str, key: &str) -> Answer {
    Answer::of(
        http_client()
            .get(format!("{url}/v1/balance"))
            .bearer_auth(key),
    )
    .await
}

#[tokio::test]
async fn on_a_pipe_the_key_is_in_a_file_and_the_printed_line_generates() {
    let setup = Setup::new("");
    let began = Instant::now();
    let gateway = setup.serve();
    let first = began.elapsed();

    let said = gateway.wait_said("image.png\n");
    let file = setup.data_dir().join("first-key");
    let key = std::fs::read_to_string(&file).unwrap();
    let key = key.trim();
    assert!(!said.contains(key) && !gateway.stderr().contains(key));
    assert!(
        said.contains(&format!(
            "The account `default` has 100.00 CNY and a key, in {}",
            file.display()
        )),
        "{said}"
    );
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let url = gateway.url();
    let answer = balance(&url, key).await;
    assert_eq!(
        (answer.status, &answer.json()["balance"]),
        (200, &100.0.into())
    );
    assert_eq!(balance(&url, "sk-wrong").await.status, 401);

    let shell = Command::new("sh")
        .arg("-c")
        .arg(curl_line(&said))
        .current_dir(setup.dir.path())
        .output()
        .unwrap();
    assert!(shell.status.success(), "{shell:?}");
    let image = std::fs::read(setup.dir.path().join("image.png")).unwrap();
    assert!(
        image.starts_with(b"\x89PNG\r\n"),
        "{:?}",
        String::from_utf8_lossy(&image)
    );
    assert_eq!(balance(&url, key).await.json()["balance"], 99.8);

    gateway.end();
    let began = Instant::now();
    let again = setup.serve();
    let later = began.elapsed();
    assert_eq!(balance(&again.url(), key).await.json()["balance"], 99.8);
    again.end();
    let said = format!("Easel is ready at {}\n", again.url());
    assert_eq!(again.stdout(), said);
    say(&format!("ready after {first:?} at first, {later:?} later"));
    assert!(first < Duration::from_secs(10), "{first:?}");
    assert!(later < Duration::from_secs(5), "{later:?}");
}

/// `script` gives it a terminal.
#[tokio::test]
async fn on_a_terminal_the_key_is_shown_once_and_no_file_is_made() {
    let setup = Setup::new("");
    let log = setup.dir.path().join("terminal");
    let mut command = setup.command(&["--log", "error", "serve", "--listen", "127.0.0.1:0"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // The gateway replaces the shell, so that it receives the signal.
    let line = format!("echo pid $$; exec {}", words.join(" "));
    command = {
        let mut script = Command::new("script");
        script.args(["-qfec", &line]).arg(&log);
        script.env_clear().envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        script.current_dir(setup.dir.path());
        script
    };
    let Ok(mut terminal) = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn() else {
        assert!(
            std::env::var_os("IT_REQUIRE_ALL").is_none(),
            "the program script is missing"
        );
        say("skipped: the output on a terminal needs the program script");
        return;
    };
    let began = Instant::now();
    let said = loop {
        let said = std::fs::read_to_string(&log)
            .unwrap_or_default()
            .replace('\r', "");
        if said.contains("image.png\n") {
            break said;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{said}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let after = |start: &str| {
        let (_, rest) = said.split_once(start).unwrap();
        rest.trim().lines().next().unwrap().to_owned()
    };

    let key = after("this key, shown only now:");
    assert_eq!(
        balance(&after("Easel is ready at "), &key).await.status,
        200
    );
    assert!(curl_line(&said).contains(&key));
    assert!(!setup.data_dir().join("first-key").exists());
    crate::harness::process::signal("TERM", after("\npid ").parse().unwrap());
    assert!(terminal.wait().unwrap().success());
}

#[tokio::test]
async fn a_second_copy_is_refused_at_once_and_the_first_continues() {
    let setup = Setup::new("");
    let gateway = setup.serve();
    let began = Instant::now();

    let second = setup.spawn(&["--log", "warn", "serve", "--listen", "127.0.0.1:0"]);
    let refused = last_words(&second);

    assert!(
        refused.starts_with("easel: another `easel serve` is using "),
        "{refused}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(second.stdout(), "");
    let ready = Answer::of(http_client().get(format!("{}/readyz", gateway.url()))).await;
    assert_eq!(ready.status, 200);
    gateway.end();
}

#[tokio::test]
async fn a_first_start_that_fails_does_not_lose_the_key() {
    let setup = Setup::new("[storage]\nurl = \"file:///proc/nothing/here\"");
    let failed = setup.spawn(&["--log", "error", "serve", "--listen", "127.0.0.1:0"]);
    last_words(&failed);
    drop(failed);

    let gateway = setup.with("").serve();

    gateway.wait_said("curl -sS");
    gateway.end();
}

#[test]
fn a_port_in_use_is_named_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let setup = Setup::new("");

    let refused = setup.spawn(&["--log", "error", "serve", "--listen", &address]);

    let said = last_words(&refused);
    assert!(
        said.starts_with(&format!("easel: cannot listen on {address}: ")),
        "{said}"
    );
    assert!(
        !setup.data_dir().exists(),
        "a database was made for nothing"
    );
    let gateway = setup.serve();
    gateway.wait_said("curl -sS");
    gateway.end();
}

#[test]
fn an_unreachable_database_is_named_in_one_line_without_its_password() {
    let setup = Setup::new("[database]\nconnect_timeout_ms = 500")
        .env("DATABASE_URL", "postgres://easel:hunter2@127.0.0.1:9/easel");

    let refused = setup.spawn(&["--log", "error", "serve", "--listen", "127.0.0.1:0"]);

    let said = last_words(&refused);
    assert!(
        said.starts_with(
            "easel: could not connect to the database: check database.url, or DATABASE_URL"
        ),
        "{said}"
    );
    assert!(said.contains("Connection refused"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
