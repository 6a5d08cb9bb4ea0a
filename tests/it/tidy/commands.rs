//! docs/development.md lists every command that a person runs.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

#[test]
fn every_command_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/development.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let commands = rows.filter_map(|row| row.split([' ', '`']).next());
    let listed: BTreeSet<&str> = commands.filter(|command| command.contains('/')).collect();

    let mut git = Command::new("git");
    let files = git.args(["ls-files", "--stage"]).current_dir(root).output();
    let files = String::from_utf8(files.unwrap().stdout).unwrap();
    let is_command = |mode: &str, path: &str| {
        let is_run = mode.starts_with("100755") || path.starts_with("scripts/");
        // The clients of the tests: the page describes them together.
        is_run && !path.starts_with("tests/clients/")
    };
    let files = files.lines().filter_map(|file| file.split_once('\t'));
    let there = files.filter(|(mode, path)| is_command(mode, path));
    let there: BTreeSet<&str> = there.map(|(_, path)| path).collect();
    assert_eq!(listed, there, "docs/development.md, and what there is");
}
