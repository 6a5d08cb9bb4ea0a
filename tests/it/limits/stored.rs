//! What refused requests leave in storage: nothing. And how much an account may store.

use std::time::{Duration, Instant};

use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;

use super::{Sending, asked};
use crate::harness::{
    TestApp,
    account::Account,
    caller::{Answer, Caller},
    images::png,
};

const PATH: &str = "/v1/images/edits?async=1";
const SLOW: &str = "[backends.demo]\nkind = 'demo'\ndelay_ms = 60000";

fn file() -> Part {
    Part::bytes(png()).file_name("a.png")
}

/// The file comes first, when nothing is known about the request yet.
fn form() -> Form {
    Form::new()
        .part("image", file())
        .text("model", "gpt-image-2")
        .text("prompt", "a cat")
}

async fn rows(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM uploads")
        .fetch_one(&*app.app.pool)
        .await
        .unwrap()
}

fn objects(app: &TestApp) -> usize {
    fn files(dir: &std::path::Path) -> usize {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return 0;
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .map(|path| if path.is_dir() { files(&path) } else { 1 })
            .sum()
    }
    files(&app.app.config.data_dir.join("objects/uploads"))
}

/// Waits until this many images are stored, in rows and in bytes.
async fn wait_for(app: &TestApp, count: usize) {
    let began = Instant::now();
    loop {
        let found = (rows(app).await, objects(app));
        if found == (i64::try_from(count).unwrap(), count) {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{found:?}, not {count}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_refused_form_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let kept = caller.upload(png(), "kept.png").await;
    assert_eq!(kept.status, 200, "{kept:?}");
    let mut many = form();
    for _ in 0..16 {
        many = many.part("image[]", file());
    }
    let broken = Part::bytes(png()[..40].to_vec()).file_name("b.png");
    for (form, status) in [
        (form().text("model", "no-such"), 404),
        (form().text("n", "11"), 400),
        (form().text("stream", "true"), 400),
        (form().part("mask", file()), 400),
        (form().part("image", broken), 400),
        (many, 400),
        (Form::new().part("image", file()), 400),
    ] {
        let shown = format!("{form:?}");
        let answer = caller.post_form(PATH, form).await;
        assert_eq!(answer.status, status, "{shown} {answer:?}");
        wait_for(&app, 1).await;
    }
    let url = kept.json()["url"].as_str().unwrap().to_owned();
    assert_eq!(caller.get(&url).await.status, 200);
    app.finish().await;
}

#[tokio::test]
async fn a_form_that_breaks_off_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let mut sending = Sending::begin(&caller, "multipart/form-data; boundary=x", 10_000_000).await;
    let head = "--x\r\ncontent-disposition: form-data; name=image; filename=a.png\r\n\r\n";
    let part = [head.as_bytes(), &png(), b"\r\n--x\r\n"].concat();
    sending.send(&part).await;
    wait_for(&app, 1).await;
    drop(sending);
    wait_for(&app, 0).await;
    app.finish().await;
}

#[tokio::test]
async fn nothing_is_stored_for_accounts_that_cannot_pay() {
    let app = TestApp::start().await;
    let poor = app.caller("0.09").await;
    let message = "balance too low: this costs 0.10 CNY and 0.09 CNY is available";
    poor.post_form(PATH, form())
        .await
        .assert_refused(402, message);
    let message = "balance too low: this costs 0.80 CNY and 0.09 CNY is available";
    let data = base64_simd::STANDARD.encode_to_string(png());
    let image = format!("data:image/png;base64,{data}");
    let dear = asked(json!({"image": image, "n": 2, "quality": "high"}));
    poor.post(PATH, &dear).await.assert_refused(402, message);
    assert_eq!((rows(&app).await, objects(&app)), (0, 0));
    app.finish().await;
}

#[tokio::test]
async fn requests_refused_at_the_hold_or_joined_leave_nothing_behind() {
    let app = TestApp::with(SLOW).await;
    let one_at_once = Account::with("9").key(|key| key.concurrent_requests = Some(1));
    let caller = app.create(one_at_once).await;
    let named = |name: &str| {
        let request = caller.request(Method::POST, PATH).multipart(form());
        Answer::of(request.header("idempotency-key", name.to_owned()))
    };
    let first = named("a").await;
    assert_eq!(first.status, 202, "{first:?}");
    wait_for(&app, 1).await;
    let again = named("a").await;
    assert_eq!(again.json()["id"], first.json()["id"]);
    wait_for(&app, 1).await;
    let another = named("b").await;
    assert_eq!(another.status, 429, "{another:?}");
    wait_for(&app, 1).await;

    // The accepted request still has its image.
    let object: String = sqlx::query_scalar(
        "SELECT u.object FROM uploads u, tasks t
         WHERE t.request #>> '{references,0,stored,object}' = u.object",
    )
    .fetch_one(&*app.app.pool)
    .await
    .unwrap();
    assert!(
        app.app
            .config
            .data_dir
            .join("objects")
            .join(object)
            .exists()
    );
    app.kill();
}

async fn upload(caller: &Caller) -> Answer {
    caller.upload(png(), "a.png").await
}

#[tokio::test]
async fn the_storage_share_of_an_account_is_freed_by_expiry() {
    let most = png().len() * 5 / 2;
    let app = TestApp::with(&format!("[uploads]\naccount_bytes_max = {most}")).await;
    let (caller, other) = (app.caller("9").await, app.caller("9").await);
    for _ in 0..2 {
        assert_eq!(upload(&caller).await.status, 200);
    }
    let by_form = caller.post_form(PATH, form()).await;
    let bodies = [upload(&caller).await.refusal(), by_form.refusal()].join("\n");
    let bodies = bodies.replace(
        &format!("hold {} bytes", png().len() * 2),
        "hold [held] bytes",
    );
    let bodies = bodies.replace(&format!("allowed are {most}"), "allowed are [most]");
    insta::assert_snapshot!(bodies, @r#"
    413 {"error":{"message":"this account's uploads hold [held] bytes, allowed are [most]: they are deleted after 72 hours","type":"invalid_request_error","code":null,"param":"file","provider":"easel"}}
    413 {"error":{"message":"this account's uploads hold [held] bytes, allowed are [most]: they are deleted after 72 hours","type":"invalid_request_error","code":null,"param":"image","provider":"easel"}}
    "#);
    wait_for(&app, 2).await;
    assert_eq!(upload(&other).await.status, 200);

    app.app.clock.advance(Duration::from_hours(73));
    assert_eq!(app.sweep().await, 3);
    let began = Instant::now();
    while upload(&caller).await.status != 200 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it is still refused"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.finish().await;
}

/// As another version may have written it.
#[tokio::test]
async fn an_upload_whose_key_cannot_be_read_is_kept_and_stops_no_other() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    for _ in 0..2 {
        assert_eq!(upload(&caller).await.status, 200);
    }
    let change = "UPDATE uploads SET object = 'elsewhere/' || object
        WHERE id = (SELECT id FROM uploads ORDER BY id LIMIT 1)";
    app.database.run(change).await;

    app.app.clock.advance(Duration::from_hours(73));

    assert_eq!(app.sweep().await, 1);
    let kept =
        "SELECT count(*) FROM uploads WHERE deleted_at IS NULL AND object LIKE 'elsewhere/%'";
    assert_eq!(app.database.number(kept).await, 1);
    assert_eq!(objects(&app), 1);
    app.finish().await;
}

#[tokio::test]
async fn inputs_of_a_request_are_deleted_after_the_deadline_of_its_task() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    assert_eq!(upload(&caller).await.status, 200);
    let result = caller.post_form("/v1/images/edits", form()).await;
    assert_eq!(result.status, 200, "{result:?}");
    let config = &app.app.config;
    let life = config.server.body_timeout() + config.tasks.deadline();
    app.app.clock.advance(life);
    assert_eq!(app.sweep().await, 0, "its task could still be at work");
    app.app.clock.advance(config.tasks.deadline());
    assert_eq!(app.sweep().await, 1);
    assert_eq!(objects(&app), 1, "the upload stays");
    app.finish().await;
}
