//! A disk that is really full: the objects of a gateway process are on a file system of 16 MiB, which the test fills.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::outage::until_ready_says;
use crate::harness::{
    caller::{Answer, Caller},
    database::TestDatabase,
    fault_proxy::FaultProxy,
    images,
    process::{Process, Setup},
    upstream::{Reply, Upstream, closed_gate},
};

const DISK_BYTES: usize = 16 << 20;
/// Mounts a disk of that size at the first argument, and becomes the program that the others name.
const MOUNT: &str = "mount -t tmpfs -o size=16m,mode=700 none \"$0\" && exec \"$@\"";
const FILLER: &str = "filler";
const WAITING: usize = 4;

/// A gateway process whose objects have a disk of their own.
struct SmallDisk {
    database: TestDatabase,
    upstream: Upstream,
    caller: Caller,
    gateway: Process,
    /// The disk, by way of the process: nobody else sees it.
    root: PathBuf,
    _proxy: FaultProxy,
}

impl SmallDisk {
    /// `None`: no file system can be mounted here.
    async fn start() -> Option<Self> {
        let setup = Setup::new("");
        let disk = setup.dir.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let mounting = mounting(&disk)?;
        let (database, upstream) = (TestDatabase::create().await, Upstream::start().await);
        // A namespace of users may have no right to the socket of the database.
        let proxy = database.proxy().await;
        // No reserve: writes are what fails. There is memory for two of the images.
        let settings = format!(
            "[tasks]\nrunning_max = {WAITING}\n\
             [storage]\nurl = \"file://{}\"\nfree_bytes_min = 0\nheld_bytes_max = 1048576\n{}",
            disk.display(),
            upstream.gateway("")
        );
        let setup = setup.with(&settings).under(&mounting);
        let setup = setup.env("DATABASE_URL", &database.url_through(&proxy));
        let gateway = setup.serve();
        let caller = database.caller(&gateway.url(), "10").await;
        let root = PathBuf::from(format!("/proc/{}/root", gateway.pid()));
        Some(Self {
            root: root.join(disk.strip_prefix("/").unwrap()),
            database,
            upstream,
            caller,
            gateway,
            _proxy: proxy,
        })
    }

    /// Fills the disk to its last byte.
    fn fill(&self) {
        let mut filler = File::create_new(self.root.join(FILLER)).unwrap();
        let written = filler.write_all(&vec![0; 2 * DISK_BYTES]);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::StorageFull);
    }

    fn clear(&self) {
        fs::remove_file(self.root.join(FILLER)).unwrap();
    }

    /// Waits until the disk has no files but the filler and the key of links. Files of probes come and go.
    async fn wait_until_nothing_is_left(&self) {
        for _ in 0..1_000 {
            if self.files().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left behind: {:?}", self.files());
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.root);
        files.retain(|file| !file.ends_with(FILLER) && !file.ends_with(".signing-key"));
        files
    }

    async fn image_of(&self, task: &Value) -> Vec<u8> {
        let link = task["data"][0]["url"].as_str().unwrap();
        let redirect = self.caller.get(link).await;
        let location = redirect.header("location").unwrap();
        self.caller.get(location).await.body
    }

    /// Shuts the gateway down and checks all invariants.
    async fn finish(self) {
        self.database.wait_for_all().await;
        self.gateway.end();
        self.database.assert_invariants().await;
    }
}

/// The words that run a program with a small disk: as root, or as root of a namespace of users.
fn mounting(disk: &Path) -> Option<Vec<&str>> {
    let mount = ["sh", "-c", MOUNT, disk.to_str().unwrap()];
    let ways = [
        &["unshare", "--mount"][..],
        &["unshare", "--user", "--map-root-user", "--mount"][..],
    ];
    let mut found = ways.into_iter().map(|way| [way, &mount[..]].concat());
    let found = found.find(|words| {
        let ran = Command::new(words[0])
            .args(&words[1..])
            .arg("true")
            .output();
        ran.is_ok_and(|ran| ran.status.success())
    });
    if found.is_none() {
        assert!(
            std::env::var_os("IT_REQUIRE_ALL").is_none(),
            "no file system can be mounted with unshare"
        );
        crate::harness::say("skipped: a full disk needs unshare and the right to mount");
    }
    found
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[track_caller]
fn assert_full(refused: &Answer) {
    refused.assert_refused(503, "storage is full");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.header("x-should-retry"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_generated_while_the_disk_is_full_are_delivered_and_bought_once() {
    let Some(small) = SmallDisk::start().await else {
        return;
    };
    let (caller, upstream) = (&small.caller, &small.upstream);
    let gate = closed_gate();
    let images: Vec<Vec<u8>> = (0..WAITING).map(|_| images::noise(400, 400)).collect();
    for image in &images {
        upstream.next(Reply::images(std::slice::from_ref(image)).held_by(&gate));
    }
    let body = |n: usize| {
        let prompt = format!("image {n}");
        json!({"model": "gpt-image-2", "prompt": prompt, "response_format": "url"})
    };
    let waiting: Vec<_> = (1..WAITING).map(|n| caller.waiting_for(body(n))).collect();
    let polled = caller.submit(&body(0)).await;
    upstream.wait_for(WAITING).await;
    let queued = caller.submit(&body(WAITING)).await;

    small.fill();
    gate.add_permits(WAITING);
    until_ready_says(caller, 503, "storage is full").await;
    for _ in 0..4 {
        for path in ["/v1/images/generations", "/v1/images/edits?async=1"] {
            assert_full(&caller.post(path, &body(9)).await);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(upstream.calls().len(), WAITING, "bought meanwhile");
    for task in [&polled, &queued] {
        let task = caller.get(&format!("/v1/images/tasks/{task}")).await;
        assert_eq!(task.json()["status"], "pending");
    }
    small.clear();

    let mut tasks = vec![caller.wait_for(&polled).await];
    for answer in waiting {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        tasks.push(answer.json());
    }
    let mut stored = Vec::new();
    for task in &tasks {
        stored.push(small.image_of(task).await);
    }
    let sorted = |mut images: Vec<Vec<u8>>| {
        images.sort_unstable();
        images
    };
    assert!(sorted(stored) == sorted(images), "other images");
    assert_eq!(caller.wait_for(&queued).await["status"], "completed");
    assert_eq!(upstream.calls().len(), WAITING + 1);
    until_ready_says(caller, 200, "ok").await;
    let charged = "SELECT -sum(balance_change)::bigint FROM entries WHERE kind = 'capture'";
    let delivered = i64::try_from(WAITING + 1).unwrap();
    assert_eq!(small.database.number(charged).await, delivered * 200_000);
    small.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_inputs_that_find_the_disk_full_are_refused_and_leave_nothing() {
    let Some(small) = SmallDisk::start().await else {
        return;
    };
    let caller = &small.caller;
    // More than a writer gathers before its first write.
    let png = images::png_of(200_000);
    let upload = || caller.upload(png.clone(), "a.png");
    let edit = || {
        let file = Part::bytes(png.clone()).file_name("a.png");
        let form = Form::new().part("image", file);
        let form = form.text("model", "gpt-image-2").text("prompt", "a cat");
        caller.post_form("/v1/images/edits", form)
    };

    small.fill();
    // No write has failed so far, so both may get as far as the disk.
    let (uploaded, edited) = tokio::join!(upload(), edit());
    assert_full(&uploaded);
    assert_full(&edited);
    until_ready_says(caller, 503, "storage is full").await;
    assert_full(&upload().await);
    small.wait_until_nothing_is_left().await;
    let rows = "SELECT count(*) FROM uploads";
    assert_eq!(small.database.number(rows).await, 0);
    assert_eq!(small.upstream.calls().len(), 0);

    small.clear();
    until_ready_says(caller, 200, "ok").await;
    assert_eq!(upload().await.status, 200);
    assert_eq!(edit().await.status, 200);
    assert_eq!(caller.balance().await["balance"], 9.8);
    small.finish().await;
}
