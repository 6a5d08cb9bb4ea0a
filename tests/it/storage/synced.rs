//! What is answered survives a power cut: the system calls of a real gateway, in their order.

use std::collections::HashMap;

use crate::harness::{
    database::TestDatabase,
    images,
    process::Setup,
    strace,
    upstream::{Reply, Upstream},
};

/// One completed system call, in the order of the log: its name, its target, and other arguments.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_uploads_are_synced_before_they_are_answered() {
    if !strace::is_installed("the order of system calls") {
        return;
    }
    let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
    let setup = Setup::on(&database, &upstream.gateway(""));
    let log = setup.dir.path().join("strace.log");
    let traced = [
        "strace",
        "-D",
        "-f",
        "-y",
        "-s",
        "300",
        "-o",
        log.to_str().unwrap(),
        "-e",
        "trace=openat,pwrite64,pwritev,fdatasync,fsync,rename,renameat,renameat2,sendto,write,writev",
    ];
    let gateway = setup.clone().under(&traced).serve();
    let caller = database.caller(&gateway.url(), "1").await;
    upstream.next(Reply::images(&[images::noise(300, 300)]));
    assert_eq!(caller.generate("kept").await.status, 200);
    let upload = caller.upload(images::png_of(200_000), "kept.png").await;
    assert_eq!(upload.status, 200);
    gateway.end();
    let calls = read(&strace::record(&log).await);

    assert_order(&calls, "images/");
    assert_order(&calls, "uploads/");
}

/// Written, synced, renamed, its directories synced, and only then answered.
fn assert_order(calls: &[Call], folder: &str) {
    let position = |what: &str, from: usize, is: &dyn Fn(&Call) -> bool| {
        let found = calls[from..].iter().position(is);
        found.map_or_else(
            || panic!("no {what} of {folder} in {calls:#?}"),
            |at| at + from,
        )
    };
    let renamed = position("rename", 0, &|call| {
        call.name.starts_with("rename") && call.text.contains(&format!("/objects/{folder}"))
    });
    let staged = calls[renamed].text.split('"').nth(1).unwrap().to_owned();
    let of_file = |name: &'static str| {
        let staged = staged.clone();
        move |call: &Call| call.name.starts_with(name) && call.text.contains(&staged)
    };
    let last_write = calls.iter().rposition(of_file("pwrite")).unwrap();
    let synced = position("fdatasync", 0, &of_file("fdatasync"));
    assert!(
        last_write < synced && synced < renamed,
        "{last_write} {synced} {renamed}"
    );
    // The directory of the object, and the parents that were created for it.
    let mut dir_synced = renamed;
    for dir in [format!("/objects/{folder}"), "/objects>".to_owned()] {
        let synced = position("fsync of a directory", renamed, &|call| {
            call.name == "fsync" && call.text.contains(&dir)
        });
        dir_synced = dir_synced.max(synced);
    }
    let answered = position("answer", renamed, &|call| {
        ["sendto", "write", "writev"].contains(&call.name.as_str())
            && call.text.contains("HTTP/1.1 200")
    });
    assert!(
        dir_synced < answered,
        "answered before {folder} was durable"
    );
}

/// The calls in the order in which they ended; a call whose line another thread's interrupts is joined.
fn read(log: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let rest = rest.trim_start();
        let text = if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, first);
            continue;
        } else if rest.starts_with("<... ") {
            begun.remove(thread).unwrap_or_default().to_owned() + rest
        } else {
            rest.to_owned()
        };
        if let Some((name, arguments)) = text.split_once('(') {
            calls.push(Call {
                name: name.to_owned(),
                text: arguments.to_owned(),
            });
        }
    }
    calls
}
