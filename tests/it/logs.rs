//! What the log contains, and what it never contains. Requests are answered even if it cannot be written.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{PipeReader, Read, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    caller::{Answer, Caller, http_client},
    database::TestDatabase,
    images::png,
    process::{Setup, signal},
    upstream::{self, Reply, Upstream},
};

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A gateway whose output goes where the test chooses.
struct Gateway {
    child: Child,
    url: String,
}

impl Gateway {
    /// Starts it and waits until it is ready.
    async fn start(setup: &Setup, arrange: impl FnOnce(&mut Command)) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap().to_string();
        drop(port);
        let mut command = setup.command(&["--log", "debug", "serve", "--listen", &address]);
        command.stdout(Stdio::null());
        arrange(&mut command);
        let child = command.spawn().unwrap();
        let mut gateway = Self {
            child,
            url: format!("http://{address}"),
        };
        let began = Instant::now();
        while !gateway.is_ready().await {
            let status = gateway.child.try_wait().unwrap();
            assert!(status.is_none(), "it ended: {status:?}");
            assert!(began.elapsed() < PATIENCE, "it is not ready");
            tokio::time::sleep(POLL).await;
        }
        gateway
    }

    async fn is_ready(&self) -> bool {
        let asked = http_client().get(format!("{}/readyz", self.url)).send();
        asked.await.is_ok_and(|answer| answer.status() == 200)
    }

    /// Asserts that it generates, stays up, and shuts down successfully and soon.
    async fn works_and_ends(mut self, database: &TestDatabase) {
        let caller = database.caller(&self.url, "5").await;
        for _ in 0..3 {
            assert_eq!(generate(&caller).await.status, 200);
        }
        assert!(self.child.try_wait().unwrap().is_none());
        signal("TERM", self.child.id());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(POLL).await;
        };
        assert!(status.success(), "{status}");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn generate(caller: &Caller) -> Answer {
    let body = serde_json::json!({"model": "gpt-image-2", "prompt": "a cat"});
    let request = http_client().post(format!("{}/v1/images/generations", caller.url));
    Answer::of(request.bearer_auth(&caller.key).json(&body)).await
}

fn full_disk() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A pipe that is completely full.
fn full_pipe() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut other_end = writer.try_clone().unwrap();
    // The capacity differs between machines: the pipe is full once a writer blocks.
    let (count, counted) = std::sync::mpsc::channel();
    thread::spawn(move || {
        while other_end.write_all(b"xxxxxxxxxxxxxxx\n").is_ok() && count.send(()).is_ok() {}
    });
    while counted.recv_timeout(Duration::from_millis(200)).is_ok() {}
    writer.flush().unwrap();
    (reader, writer)
}

#[tokio::test]
async fn requests_are_answered_while_stderr_is_closed() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let gateway = Gateway::start(&setup, |command| {
        let mut words = vec![command.get_program().to_owned()];
        words.extend(command.get_args().map(ToOwned::to_owned));
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 2>&- >&-", "sh"]).args(words);
        shell.env_clear().current_dir(setup.dir.path());
        let set = command.get_envs();
        shell.envs(set.filter_map(|(name, value)| Some((name, value?))));
        *command = shell;
    });
    gateway.await.works_and_ends(&database).await;
}

#[tokio::test]
async fn requests_are_answered_when_the_reader_of_the_log_is_gone() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let gateway = Gateway::start(&setup, |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
    });
    gateway.await.works_and_ends(&database).await;
}

#[tokio::test]
async fn requests_are_answered_while_the_disk_of_the_log_is_full() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let gateway = Gateway::start(&setup, |command| {
        command.stdout(full_disk()).stderr(full_disk());
    });
    gateway.await.works_and_ends(&database).await;
}

#[tokio::test]
async fn requests_are_answered_while_nobody_reads_a_full_pipe() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    let (reader, writer) = full_pipe();
    let gateway = Gateway::start(&setup, |command| {
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
    });
    gateway.await.works_and_ends(&database).await;
    drop(reader);
}

#[tokio::test]
async fn lost_lines_are_counted_in_the_log_once_it_is_read_again() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "").env("EASEL_LOG__BUFFER_BYTES_MAX", "2000");
    let (mut reader, writer) = full_pipe();
    let gateway = Gateway::start(&setup, |command| {
        command.stderr(writer);
    })
    .await;
    let caller = database.caller(&gateway.url, "5").await;
    for _ in 0..5 {
        assert_eq!(generate(&caller).await.status, 200);
    }
    let (found, is_found) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while let Ok(count @ 1..) = reader.read(&mut piece) {
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
            if text.contains("log lines dropped: ") {
                break;
            }
        }
        found.send(text).unwrap();
    });
    let text = is_found.recv_timeout(PATIENCE).unwrap();
    assert!(text.contains("log lines dropped: "), "{text}");
    // It also shuts down while nobody reads.
    gateway.works_and_ends(&database).await;
}

#[tokio::test]
async fn commands_end_quietly_without_a_reader_and_report_a_full_disk() {
    let database = TestDatabase::create().await;
    let setup = Setup::on(&database, "");
    setup.run(&["accounts", "create", "studio"]).good();
    let lists = [
        &["accounts", "list"][..],
        &["keys", "list"],
        &["usage", "--account", "studio"],
        &["usage", "--account", "studio", "--format", "csv"],
        &["config", "print"],
        &["doctor"],
    ];
    for arguments in lists {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = setup.command(arguments);
        let output = command.stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*said),
            (Some(0), ""),
            "{arguments:?}"
        );

        let mut command = setup.command(arguments);
        let output = command.stdout(full_disk()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = "easel: could not write the output to stdout: No space left on device";
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with(expected), "{arguments:?}: {said}");
    }
    // Nor can errors be written.
    let mut command = setup.command(&["accounts", "show", "nobody"]);
    let ended = command.stdout(full_disk()).stderr(full_disk()).status();
    assert_eq!(ended.unwrap().code(), Some(1));
}

#[tokio::test]
async fn the_most_verbose_log_contains_no_key_prompt_or_link() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let setup = Setup::on(&database, &upstream.gateway(""));
    let gateway = setup.spawn(&["--log", "trace", "serve", "--listen", "127.0.0.1:0"]);
    gateway.wait_ready();
    let caller = database.caller(&gateway.url(), "5").await;
    let last = |link: &str| link.rsplit('/').next().unwrap().to_owned();

    let upload = caller.upload(png(), "private-name.png").await.json();
    let upload = upload["url"].as_str().unwrap().to_owned();
    let body = serde_json::json!({"model": "gpt-image-2", "prompt": "a-prompt-nobody-may-see",
        "image_urls": [upload, format!("data:image/png;base64,{}", base64_simd::STANDARD.encode_to_string(png()))]});
    let result = caller.post("/v1/images/generations", &body).await;
    assert_eq!(result.status, 200, "{result:?}");
    let link = result.json()["data"][0]["url"].as_str().unwrap().to_owned();
    let stored = caller
        .get(&link)
        .await
        .header("location")
        .unwrap()
        .to_owned();
    assert_eq!(caller.get(&stored).await.status, 200);
    upstream.always(Some(Reply::error(400, "bad", "It is so.")));
    assert_eq!(
        caller
            .generate("another-prompt-nobody-may-see")
            .await
            .status,
        400
    );
    assert_eq!(caller.get("/v1/images/tasks").await.status, 200);
    let mut stranger = caller.clone();
    stranger.key = format!("{}x", caller.key);
    assert_eq!(
        stranger.generate("a-prompt-of-a-stranger").await.status,
        401
    );
    gateway.end();

    let log = gateway.stderr();
    assert!(log.contains("TRACE"), "it is not at trace level");
    let base64 = base64_simd::STANDARD.encode_to_string(png());
    for secret in [
        caller.key.as_str(),
        upstream::KEY,
        "prompt-nobody-may-see",
        "prompt-of-a-stranger",
        "private-name",
        &last(&upload),
        &last(&link),
        &last(&stored),
        &base64[..40],
    ] {
        let found = log.lines().find(|line| line.contains(secret));
        assert!(found.is_none(), "{secret:?} is in the log: {found:?}");
    }
}

/// A line of a log in JSON.
struct Line(Value);

impl Line {
    fn all_of(log: &str) -> Vec<Self> {
        let read = |line| Self(serde_json::from_str(line).unwrap());
        log.lines().map(read).collect()
    }

    fn is_by(&self, target: &str) -> bool {
        self.0["target"].as_str().unwrap().starts_with(target)
    }

    fn message(&self) -> &str {
        self.0["fields"]["message"].as_str().unwrap_or_default()
    }

    /// The spans it is in, from the outermost.
    fn spans(&self) -> &[Value] {
        let spans = self.0["spans"].as_array();
        spans.map(Vec::as_slice).unwrap_or_default()
    }

    /// The names of its spans: `task/attempt`.
    fn place(&self) -> String {
        let names = self.spans().iter().map(|span| span["name"].as_str());
        names.map(Option::unwrap).collect::<Vec<_>>().join("/")
    }

    /// The value of this field in one of its spans.
    fn field(&self, name: &str) -> Option<&Value> {
        self.spans().iter().find_map(|span| span.get(name))
    }
}

/// The first attempt fails, and the image of the second cannot be stored at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_task_id_finds_every_line_of_a_tasks_life() {
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let settings = format!("[routing]\nretry_wait_ms = 10\n{}", upstream.gateway(""));
    let setup = Setup::on(&database, &settings).env("EASEL_LOG__FORMAT", "json");
    let gateway = setup.spawn(&["--log", "debug", "serve", "--listen", "127.0.0.1:0"]);
    gateway.wait_ready();
    let caller = database.caller(&gateway.url(), "5").await;
    upstream.next(Reply::error(500, "server_error", "It is so."));
    let gate = upstream.hold(1);
    let waiting = caller.waiting("a bridge");
    upstream.wait_for(2).await;
    let staging = setup.data_dir().join("objects/.staging");
    let elsewhere = staging.with_file_name("elsewhere");
    std::fs::rename(&staging, &elsewhere).unwrap();
    gate.add_permits(1);
    gateway.wait_logged("could not store an image");
    std::fs::rename(&elsewhere, &staging).unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    gateway.end();

    let lines = Line::all_of(&gateway.stderr());
    let id = answer.json()["id"].clone();
    let (found, others): (Vec<&Line>, Vec<&Line>) = lines
        .iter()
        .partition(|line| line.field("task.id") == Some(&id));
    let ours = found.iter().filter(|line| line.is_by("easel"));
    let told: BTreeSet<_> = ours.map(|line| (line.place(), line.message())).collect();
    let call = "task/attempt/upstream_call";
    let life = [
        ("request", "answered"),
        (call, "an upstream call failed"),
        ("task", "requeued a task for another attempt"),
        (call, "could not store an image, retrying"),
        ("task", "ended a task"),
    ];
    let life = life.map(|(place, message)| (place.to_owned(), message));
    assert_eq!(told, BTreeSet::from(life));
    // sqlx logs each statement, within the function of the store that sends it.
    let mut statements = found.iter().filter(|line| line.is_by("sqlx::query"));
    assert!(statements.any(|line| line.place() == "task/requeue"));
    let is_missed = |line: &&&Line| told.iter().any(|(_, message)| *message == line.message());
    let missed = others.iter().find(is_missed).map(|line| &line.0);
    assert_eq!(missed, None);

    let is_failure = |line: &&&Line| line.message() == "an upstream call failed";
    let failure = found.iter().find(is_failure).unwrap();
    let account = caller.account_id.to_string();
    assert_eq!(failure.field("account.id").unwrap(), &account);
    assert_eq!(failure.field("route").unwrap(), "up");
    assert_eq!(failure.field("fence").unwrap(), 1);
}
