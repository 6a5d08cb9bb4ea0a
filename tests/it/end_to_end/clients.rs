//! Real clients as real processes: the official SDK, the documented workflows, and curl.

use std::{path::PathBuf, process::Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::{
    backends::gemini::server::{self as gemini, Gemini},
    harness::{
        TestApp,
        account::Account,
        tool,
        upstream::{self, Upstream},
    },
};

/// Runs a client program and returns the JSON lines it printed; `None` if this machine lacks the interpreter.
pub async fn run(program: &str, arguments: &[&str]) -> Option<Vec<Value>> {
    let python = tool("IT_PYTHON", program)?;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(program);
    let mut command = if script
        .extension()
        .is_some_and(|extension| extension == "sh")
    {
        let mut command = Command::new("bash");
        command.env("IT_PYTHON", &python);
        command
    } else {
        Command::new(&python)
    };
    let output = command
        .arg(script)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{program}: {text}{errors}");
    Some(
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_python_workflow_runs() {
    let app = TestApp::start().await;
    let caller = app.caller("1.00").await;
    if let Some(facts) = run("apimart_workflow.py", &[&app.url, &caller.key]).await {
        assert!(!facts.is_empty());
        assert_eq!(caller.balance().await["balance"], 0.8);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_curl_lines_run() {
    let app = TestApp::start().await;
    let caller = app.caller("2.00").await;
    if let Some(facts) = run("curl_lines.sh", &[&app.url, &caller.key]).await {
        let names: Vec<&str> = facts
            .iter()
            .filter_map(|fact| fact["name"].as_str())
            .collect();
        for name in [
            "upload",
            "minimal",
            "ratio_2k",
            "edit_by_url",
            "edit_by_file",
            "edit_mixed",
            "async_poll",
        ] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        let usage = caller.get("/v1/usage").await.json();
        let tasks = usage["data"].as_array().unwrap();
        let total: f64 = tasks
            .iter()
            .map(|task| task["cost"].as_f64().unwrap())
            .sum();
        let left = caller.balance().await["balance"].as_f64().unwrap();
        assert!(
            (2.0 - total - left).abs() < 1e-9,
            "{total} was spent, {left} is left"
        );
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_python_generates() {
    let app = TestApp::start().await;
    let caller = app.caller("5.00").await;
    run("openai_generate.py", &[&app.url, &caller.key]).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_python_edits() {
    let app = TestApp::start().await;
    let caller = app.caller("5.00").await;
    run("openai_edit.py", &[&app.url, &caller.key]).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_python_sees_errors_as_its_typed_exceptions() {
    let app = TestApp::start().await;
    let caller = app.caller("5.00").await;
    let poor = app.caller("0.00").await;
    let limited = Account::with("5.00").key(|key| key.requests_per_minute = Some(2));
    let limited = app.create(limited).await;
    let arguments = [
        &app.url,
        &caller.key,
        "--poor-key",
        &poor.key,
        "--limited-key",
        &limited.key,
    ];
    run("openai_errors.py", &arguments.map(AsRef::as_ref)).await;
    app.finish().await;
}

/// The SDK sends three requests; one image is generated and charged.
#[tokio::test(flavor = "multi_thread")]
async fn openai_python_retries_without_buying_twice() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\ndelay_ms = 3500\n").await;
    let caller = app.caller("5.00").await;
    if let Some(facts) = run("openai_retry.py", &[&app.url, &caller.key]).await {
        assert!(
            facts[0]["attempts"].as_array().unwrap().len() > 1,
            "{facts:?}"
        );
        assert_eq!(caller.balance().await["balance"], 4.8);
        assert_eq!(
            caller.get("/v1/usage").await.json()["data"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }
    app.finish().await;
}

/// The SDK accepts the fake upstream of the other tests as OpenAI's API.
#[tokio::test(flavor = "multi_thread")]
async fn openais_sdk_accepts_the_fake_upstream() {
    let upstream = Upstream::start().await;
    let arguments = [
        "--wrong-key",
        "sk-wrong",
        "--refused-prompt",
        upstream::REFUSED_PROMPT,
    ];
    let arguments = [&[upstream.url.as_str(), upstream::KEY][..], &arguments[..]].concat();
    run("upstream_judge.py", &arguments).await;
}

/// Google's SDK accepts the fake of Gemini as its API.
#[tokio::test(flavor = "multi_thread")]
async fn googles_sdk_accepts_the_fake_gemini() {
    let server = Gemini::start().await;
    let arguments = [
        server.url.as_str(),
        gemini::KEY,
        "--wrong-key",
        "AIza-wrong",
        "--refused-prompt",
        gemini::REFUSED_PROMPT,
    ];
    if let Some(facts) = run("gemini_judge.py", &arguments).await {
        assert_eq!(facts[0]["refused"], "PROHIBITED_CONTENT");
    }
}
