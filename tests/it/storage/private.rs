//! What the gateway stores on the local disk is readable for its own user only.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::harness::{database::TestDatabase, images, process::Setup};

/// What other users of the machine may access in it and below it, as paths and modes.
fn open_to_others(path: &Path) -> Vec<(PathBuf, u32)> {
    let meta = fs::symlink_metadata(path).unwrap();
    let mode = meta.mode() & 0o077;
    let mut found = Vec::new();
    if mode != 0 {
        found.push((path.to_path_buf(), mode));
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            found.extend(open_to_others(&entry.unwrap().path()));
        }
    }
    found
}

#[tokio::test]
async fn everything_in_the_data_directory_is_its_owners_alone() {
    let setup = Setup::new("");
    fs::create_dir(setup.data_dir()).unwrap();
    fs::set_permissions(setup.data_dir(), Permissions::from_mode(0o755)).unwrap();
    let gateway = setup.serve();
    let key = fs::read_to_string(setup.data_dir().join("first-key")).unwrap();
    let database = TestDatabase::create().await;
    let mut caller = database.caller(&gateway.url(), "0").await;
    key.trim().clone_into(&mut caller.key);
    assert_eq!(caller.generate("a secret").await.status, 200);
    assert_eq!(caller.upload(images::png(), "a.png").await.status, 200);
    let body = json!({"model": "gpt-image-2", "prompt": "another"});
    assert_eq!(
        caller.post("/v1/images/generations", &body).await.status,
        200
    );

    let data = setup.data_dir();
    let mut open = open_to_others(&data);
    // PostgreSQL has its own rules, below its own directory.
    open.retain(|(path, _)| !path.starts_with(data.join("postgres")));
    // Where the gateway is root, its PostgreSQL runs as another user, who may traverse the directory but not list it.
    open.retain(|entry| *entry != (data.clone(), 0o011));
    assert_eq!(open, []);
    let cluster = fs::metadata(data.join("postgres")).unwrap();
    assert_eq!(cluster.mode() & 0o077, 0);
    let said = gateway.stderr();
    assert!(
        said.contains("was open to other users (mode 755)"),
        "{said}"
    );
    gateway.end();

    // Its PostgreSQL can still access its files.
    setup.serve().end();
}
