//! Enforces the architecture: floors, sizes, the places of SQL, forbidden words, dependencies and lists of commands.

mod bodies;
mod commands;
mod dependencies;
mod imports;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
};

const LINES_MAX: usize = 400;
const LINES_OF_NINE_IN_TEN: usize = 300;

#[test]
fn files_start_with_a_header_and_stay_small() {
    let mut lengths = Vec::new();
    for (path, text) in sources("tests") {
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
    }
    for (path, text) in sources("src") {
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
        let lines = without_tests(&text).lines().count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines without its tests",
            path.display()
        );
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let nine_in_ten = lengths[lengths.len() * 9 / 10];
    assert!(
        nine_in_ten <= LINES_OF_NINE_IN_TEN,
        "one file in ten is over {nine_in_ten} lines"
    );
}

#[test]
fn sql_is_in_stores_and_the_ledger_only() {
    for (path, text) in sources("src") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let may = matches!(name, "store.rs" | "ledger.rs" | "repeats.rs")
            || path.starts_with("src/db")
            || path.starts_with("src/tasks/store")
            || path.starts_with("src/billing/ledger")
            || path.starts_with("src/private_postgres");
        for word in ["query!(", "query_as!(", "query_scalar!(", "sqlx::query"] {
            assert!(may || !text.contains(word), "{} has SQL", path.display());
        }
    }
    for (path, text) in sources("src") {
        let moves_money = [
            "UPDATE accounts SET balance",
            "UPDATE accounts AS a",
            "INTO entries",
        ]
        .iter()
        .any(|words| text.contains(words));
        let may = path.starts_with("src/billing/ledger");
        assert!(may || !moves_money, "{} moves money", path.display());
    }
}

#[test]
fn no_todo_and_no_silent_allow_remains() {
    for (path, text) in sources("src") {
        for (number, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            assert!(
                !line.contains("#[allow(") && !line.contains("#![allow("),
                "{at}: say #[expect]"
            );
            for word in [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                "unimplemented!",
                "todo!",
            ] {
                assert!(!line.contains(word), "{at}: {word}");
            }
        }
    }
}

/// One word for each thing: types are named as the glossary says.
#[test]
fn types_are_named_as_the_glossary_says() {
    let banned = [
        "Provider", "Channel", "Driver", "Tenant", "Manager", "Helper", "Util",
    ];
    for (path, text) in sources("src") {
        for line in text.lines() {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| word.starts_with("pub"));
            if !matches!(words.next(), Some("struct" | "enum" | "trait" | "type")) {
                continue;
            }
            let name = words.next().unwrap_or_default();
            for word in banned {
                assert!(!name.contains(word), "{}: {name}", path.display());
            }
        }
    }
}

/// The text without its module of unit tests, wherever that stands.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            let is_inline = lines.next().is_some_and(|item| item.ends_with('{'));
            while is_inline && lines.next().is_some_and(|line| line != "}") {}
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn without_comments(text: &str) -> String {
    let lines = text.lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut dirs = vec![root.join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {dir}");
    found
}
