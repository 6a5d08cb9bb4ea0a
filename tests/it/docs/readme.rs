//! Every command in the README, run as written except for the address and the program's path.

use std::{fs, path::Path, process::Stdio};

use easel::config::{Config, Sources};
use tokio::process::Command;

use crate::harness::{TestApp, database::TestDatabase, tool};

const ADDRESS: &str = "127.0.0.1:8080";

/// The code blocks in a language.
fn blocks(language: &str) -> Vec<String> {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let found: Vec<String> = readme
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap().to_owned())
        .collect();
    assert!(!found.is_empty(), "the README has no {language}");
    found
}

/// Runs a program in an empty directory; returns what it printed.
async fn run(program: &str, arguments: &[&str], dir: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_PROXY", "*");
    let output = command
        .envs(variables.iter().copied())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{errors}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_images_are_generated_as_the_readme_says() {
    let app = TestApp::start().await;
    let caller = app.caller("1.00").await;
    let dir = tempfile::tempdir().unwrap();
    let here = |code: &String| code.replace(&format!("http://{ADDRESS}"), &app.url);

    let curl = blocks("sh")
        .iter()
        .find(|code| code.starts_with("curl "))
        .map(here)
        .unwrap();
    let answer = run("bash", &["-ec", &curl], dir.path(), &[("KEY", &caller.key)]).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let link = answer["data"][0]["url"].as_str().unwrap();
    assert_eq!(caller.get(link).await.status, 302);

    let upload = caller
        .get(caller.get(link).await.header("location").unwrap())
        .await;
    fs::write(dir.path().join("photo.png"), upload.body).unwrap();
    if let Some(python) = tool("IT_PYTHON", "the README's Python") {
        for code in blocks("python").iter().map(here) {
            let printed = run(&python, &["-c", &code], dir.path(), &[("KEY", &caller.key)]).await;
            assert!(
                printed.contains("/v1/images/files/gpt-image-2/"),
                "{printed}"
            );
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_run() {
    let database = TestDatabase::create().await;
    let dir = tempfile::tempdir().unwrap();
    let url = database.url();
    let program = env!("CARGO_BIN_EXE_easel");
    let mut commands = 0;
    for code in blocks("sh") {
        for line in code
            .lines()
            .filter(|line| line.starts_with("cargo run -- "))
        {
            let command = line.replace("cargo run --", program);
            run(
                "bash",
                &["-ec", &command],
                dir.path(),
                &[("DATABASE_URL", &url)],
            )
            .await;
            commands += 1;
        }
    }
    assert_eq!(commands, 6);
}

/// A request that is forwarded to an expensive upstream must cost the client more, too.
#[test]
fn the_readmes_real_upstream_is_priced_like_its_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = fs::read_to_string(root.join("config/openai.toml")).unwrap();
    let model = |text: &str| {
        let settings: toml::Table = text.parse().unwrap();
        settings["models"]["gpt-image-2"]
            .as_table()
            .unwrap()
            .clone()
    };
    let (readme, example) = (model(&blocks("toml")[0]), model(&example));
    for key in ["routes", "price_low", "price_medium", "price_high"] {
        assert_eq!(readme[key], example[key], "{key}");
    }
}

#[test]
fn the_settings_of_the_readme_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "sk-not-a-real-one\n").unwrap();
    for (number, settings) in blocks("toml").iter().enumerate() {
        let file = dir.path().join(format!("{number}.toml"));
        fs::write(
            &file,
            settings.replace("/run/secrets/openai", secret.to_str().unwrap()),
        )
        .unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
    }
}
